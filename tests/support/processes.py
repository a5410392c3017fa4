"""The real processes, started from the Procfile's own lines, each in a process group of its own."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
import requests

from support import wait_until

ROOT = Path(__file__).parents[2]
LINES = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())


def free_port():
    """Return a TCP port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Stack:
    """The application on ports of its own; `settings` are added to the environment of every process."""

    def __init__(self, logs, **settings):
        self.logs, self.processes = Path(logs), {}
        self.ports = {name: free_port() for name in ("redis", "rng", "hasher", "webui")}
        ports = {f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        ports |= {
            f"{name.upper()}_URL": f"http://127.0.0.1:{self.ports[name]}"
            for name in ("rng", "hasher")
        }
        ports["REDIS_URL"] = f"redis://127.0.0.1:{self.ports['redis']}"
        path = f"{ROOT}/.venv/bin:{os.environ['PATH']}"
        self.env = os.environ | ports | {"PATH": path} | settings
        self.db = redis.Redis(port=self.ports["redis"], socket_timeout=5)

    def url(self, name, path="/"):
        """Return the address of `path` at the service `name`."""
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def start(self, *names, **settings):
        """Start processes by name: `worker.2` is the second worker. The log is added to a file of that name."""
        for name in names:
            with open(self.logs / f"{name}.log", "ab") as log:
                self.processes[name] = subprocess.Popen(
                    ["bash", "-c", LINES[name.split(".")[0]]],
                    cwd=ROOT, env=self.env | settings, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        return self

    def ready(self):
        """Wait until all but the workers answer."""
        for name in set(self.ports) & set(self.processes):
            if name == "redis":
                wait_until(self.db.ping, 10, "redis answers")
            else:
                url = self.url(name, "/healthz")
                wait_until(lambda url=url: requests.get(url, timeout=1).ok, 10, f"{name} answers")
        return self

    def send(self, name, number):
        """Send a signal to every process of `name`."""
        os.killpg(self.processes[name].pid, number)

    def stop(self, name, number=signal.SIGTERM, seconds=5):
        """Send `number` (a SIGTERM to the first process alone, as Docker does), wait; return exit status, seconds."""
        process, start = self.processes.pop(name), time.monotonic()
        if number == signal.SIGTERM:
            process.terminate()
        else:
            os.killpg(process.pid, number)
        try:
            return process.wait(seconds), time.monotonic() - start
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def close(self):
        """End what still runs: workers first, Redis last."""
        for name in sorted(
            self.processes, key=lambda name: (name == "redis", not name.startswith("worker"))
        ):
            self.stop(name, signal.SIGKILL)

    def log(self, name):
        """Return the log so far."""
        return (self.logs / f"{name}.log").read_text()

    def hashes(self):
        """Return the counter."""
        return int(self.db.get("hashes") or 0)

    def served(self):
        """Return the units that hasher has served, by its access log."""
        return self.log("hasher").count('"POST / HTTP/1.1" 200')

    def rate(self, seconds, source=None):
        """Return hashes/s over about `seconds`, measured from one step of `source` (the counter) to another."""
        source = source or self.hashes
        first, start = self._step(source, source())
        last, end = first, start
        while end - start < seconds:
            last, end = self._step(source, last)
        return (last - first) / (end - start)

    @staticmethod
    def _step(source, value):
        return wait_until(
            lambda: (new := source()) != value and (new, time.monotonic()), 10, "the counter moves"
        )
