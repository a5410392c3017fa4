"""The real processes, started by the lines of the Procfile, and a TCP proxy between two of them."""

import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import redis
import requests

from support import wait_until

ROOT = Path(__file__).parents[2]
LINES = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())


def free_port():
    """Return a TCP port that is not in use, below those that Linux gives to clients (32768)."""
    while True:
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("", port := random.SystemRandom().randrange(10000, 30000)))
            return port


class Stack:
    """The application on ports of its own; `settings` are added to the environment."""

    def __init__(self, logs, **settings):
        self.logs, self.processes = Path(logs), {}
        self.ports = {name: free_port() for name in ("redis", "rng", "hasher", "webui")}
        if "REDIS_URL" in settings:
            self.ports["redis"] = int(settings["REDIS_URL"].split(":")[-1])
        self.env = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        self.env |= {f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        self.env |= {f"{name.upper()}_URL": self.url(name, "") for name in ("rng", "hasher")}
        self.env |= {
            "REDIS_URL": f"redis://127.0.0.1:{self.ports['redis']}",
            "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
        } | settings
        self.db = redis.Redis(port=self.ports["redis"], socket_timeout=5)

    def url(self, name, path="/"):
        """Return the address of `path` at the service `name`."""
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def start(self, *names, before="", **settings):
        """Start processes by name, each with a log file of its name; `worker.2` is one more worker.

        `before` is a shell command that runs first, in a new mount namespace.
        """
        for name in names:
            command = ["bash", "-c", LINES[name.split(".")[0]]]
            if before:
                command = ["unshare", "--mount", "bash", "-c", f"{before} && {command[-1]}"]
            with open(self.logs / f"{name}.log", "ab") as log:
                self.processes[name] = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self.env | settings,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        return self

    def ready(self):
        """Wait until all processes except the workers answer."""
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
        """Send a signal, as Docker does, and wait; return the exit status and the seconds."""
        process, start = self.processes.pop(name), time.monotonic()
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        try:
            return process.wait(seconds), time.monotonic() - start
        finally:
            with suppress(ProcessLookupError):  # what is left of its group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self):
        """Kill what is still running."""
        for name in list(self.processes):
            self.stop(name, signal.SIGKILL)

    def log(self, name):
        """Return the log so far."""
        return (self.logs / f"{name}.log").read_text()

    def lines(self, text, log="worker"):
        """Return the lines of a log that contain `text`."""
        return [line for line in self.log(log).splitlines() if text in line]

    def hashes(self):
        """Return the counter."""
        return int(self.db.get("hashes") or 0)

    def logged(self):
        """Return how many units of work the workers have logged as counted."""
        logs = "".join(log.read_text() for log in self.logs.glob("worker*.log"))
        return sum(map(int, re.findall(r":(\d+) units of work done", logs)))

    def served(self):
        """Return how many units hasher has served, by its access log."""
        return self.log("hasher").count('"POST / HTTP/1.1" 200')

    def rate(self, seconds):
        """Return units/s at hasher, measured between two units at least `seconds` apart."""
        (first, start), end = self._next_unit(), 0
        while end - start < seconds:
            last, end = self._next_unit()
        return (last - first) / (end - start)

    def _next_unit(self):
        before = self.served()
        return wait_until(
            lambda: (now := self.served()) > before and (now, time.monotonic()),
            10,
            "a unit of work",
        )


class Proxy:
    """A TCP proxy to `port` on this machine; after `close()` it refuses connections.

    `request` and `reply` are called with data in either direction and the socket it goes to, and
    return whether to forward it. `answer` gets the client's socket instead of the service.
    """

    def __init__(self, port):
        self.target, self.port, self.sockets, self.kept = port, 0, set(), []
        self.request = self.reply = self.answer = None
        self.open()

    def open(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, args=[self.listener], daemon=True).start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # ends its accept()
        self.listener.close()
        for sock in self.sockets:
            self.hang_up(sock)

    def hang_up(self, sock):
        """Close a connection, even while a thread reads from it, unless it is in `kept`."""
        if sock not in self.kept:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accept(self, listener):
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self.serve, args=[client], daemon=True).start()

    def serve(self, client):
        self.sockets.add(client)
        try:
            if self.answer:
                client.recv(65536)
                self.answer(client)
                raise ConnectionError
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            self.hang_up(client)
            return
        self.sockets.add(server)
        for source, sink, name in ((client, server, "request"), (server, client, "reply")):
            threading.Thread(target=self.pump, args=[source, sink, name], daemon=True).start()

    def pump(self, source, sink, name):
        with suppress(OSError):
            while data := source.recv(65536):
                if not (let_through := getattr(self, name)) or let_through(data, sink):
                    sink.sendall(data)
        self.hang_up(source)
        self.hang_up(sink)
