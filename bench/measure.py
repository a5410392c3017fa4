"""Measures DockerCoins in containers: any folder with a Compose file of the five services."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

COMPOSE = ("docker-compose",) if shutil.which("docker-compose") else ("docker", "compose")
SERVICES = ("rng", "hasher", "webui", "worker", "redis")
NO_DELAYS = {f"{name}_DELAY": "0" for name in ("RNG", "HASHER", "WORKER")}
PORT = 8000  # of webui, on this machine
QUICK = bool(os.environ.get("QUICK"))
SECONDS = 6 if QUICK else 20  # for which a rate is measured
IS_ROOT = os.geteuid() == 0  # only root may read the memory use of containers


class Failed(Exception):
    """Ends the benchmark with a one-line message."""


def run(*command, timeout=600, folder=None, **env):
    """Run a command without DEBUG and delays from the environment, and return its output."""
    clean = {k: v for k, v in os.environ.items() if not re.fullmatch("DEBUG|.*_DELAY", k)}
    done = subprocess.run(
        command, cwd=folder, env=clean | env, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def wait_until(condition, seconds, what):
    """Wait until `condition()` is true and return how long that took (s)."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - begun


def hashes(address=f"127.0.0.1:{PORT}"):
    """Return the counter that webui reports, or 0 if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/json", timeout=2) as answer:
            return int(json.load(answer)["hashes"] or 0)
    except (OSError, ValueError):
        return 0


def rate(*address, seconds=SECONDS):
    """Return hashes/s, measured between two steps of the counter at least `seconds` apart."""

    def step():
        before = hashes(*address)
        wait_until(lambda: hashes(*address) > before, 30, "a hash is counted")
        return time.monotonic(), hashes(*address)

    begun, first = step()
    time.sleep(seconds)
    ended, last = step()
    return (last - first) / (ended - begun)


class App:
    """A DockerCoins as its Compose file describes it."""

    def __init__(self, folder, project):
        self.folder, self.project = folder, project
        if not list(folder.glob("*compose.y*ml")):
            raise Failed(f"{folder} has no Compose file")

    def compose(self, *args, **env):
        """Run Compose and return how long that took (s)."""
        begun, names = time.monotonic(), {"REGISTRY": self.project, "TAG": "bench"}
        run(*COMPOSE, "-p", self.project, *args, folder=self.folder, **names, **env)
        return time.monotonic() - begun

    def up(self, workers, **env):
        """Start `workers` workers and wait until they count; return how long Compose took (s)."""
        took, before = self.compose("up", "-d", "--scale", f"worker={workers}", **env), hashes()
        wait_until(lambda: hashes() > before + 3 * workers, 30, f"{workers} workers mine")
        return took

    def down(self):
        """Remove the containers and their data."""
        self.compose("down", "-v", "--remove-orphans", "-t", "5")

    def processes(self, service):
        """Return the /proc/PID folders of a service's processes."""
        label = f"label=com.docker.compose.project={self.project}"
        only = f"label=com.docker.compose.service={service}"
        found = run("docker", "ps", "-q", "--filter", label, "--filter", only).split()
        pids = [run("docker", "top", each, "-eo", "pid").split()[1:] for each in found]
        return [Path("/proc", pid) for group in pids for pid in group]

    def cpu(self, *services):
        """Return the CPU time (s) that services have used."""
        folders = [folder for service in services for folder in self.processes(service)]
        fields = [(each / "stat").read_text().rpartition(")")[2].split() for each in folders]
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def busy(self, *services):
        """Return how much of a core (%) services use during the next SECONDS."""
        begun, before = time.monotonic(), self.cpu(*services)
        time.sleep(SECONDS)
        return 100 * (self.cpu(*services) - before) / (time.monotonic() - begun)

    def memory(self, service):
        """Return the memory (MB, proportional set size) of a service."""
        rollups = [(each / "smaps_rollup").read_text() for each in self.processes(service)]
        return sum(int(re.search(r"^Pss: +(\d+)", each, re.M)[1]) for each in rollups) * 1024 / 1e6

    def busy_with_pages(self, pages):
        """Return how much of a core (%) webui and redis use while `pages` pages are open."""
        browser, end = HTTPConnection("127.0.0.1", PORT, timeout=5), time.monotonic() + SECONDS + 3
        browser.request("GET", "/speed")  # a page polls it
        has_speed = browser.getresponse().status == 200

        def page(number):
            time.sleep(number / pages)  # so that pages do not poll in step
            browser = HTTPConnection("127.0.0.1", PORT, timeout=5)
            while time.monotonic() < end:
                asked = time.monotonic()
                older = f"/json?since={time.time() - 7:.0f}"  # a page of d62f9f8
                browser.request("GET", "/speed" if has_speed else older)
                browser.getresponse().read()
                time.sleep(max(0, asked + 1 - time.monotonic()))

        with ThreadPoolExecutor(pages) as browsers:
            opened = [browsers.submit(page, number) for number in range(pages)]
            time.sleep(2)
            busy = self.busy("webui", "redis")
            for each in opened:
                each.result()
        return busy


def received():
    """Return how many MB this machine has received over the network."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    counts = {name.strip(): int(rest.split()[0]) for name, rest in (x.split(":") for x in lines)}
    own = ("lo", "docker", "br-", "veth")
    return sum(count for name, count in counts.items() if not name.startswith(own)) / 1e6


def measure_build(app, note):
    """Record a build with an empty cache, and the pull of base images that are missing."""
    before = received()
    note("first build, s", app.compose("build", "--no-cache"))
    note("first build, MB received", received() - before)


def measure(app, note):
    """Record the figures of one run of an application."""
    begun = time.monotonic()
    app.compose("up", "-d")
    wait_until(hashes, 60, "the first hash is counted")
    note("up to the first counted hash, s", time.monotonic() - begun)
    app.up(1)
    note("1 worker, hashes/s", rate())
    note("1 worker: CPU of the worker, % of a core", app.busy("worker"))
    for service in SERVICES if IS_ROOT else ():
        note(f"memory of {service}, MB", app.memory(service))
    app.up(2)
    note("2 workers, hashes/s", rate())
    note("scale from 2 to 10 workers, s", app.up(10))
    note("10 workers, hashes/s", rate())
    note("10 workers: CPU of all services, % of a core", app.busy(*SERVICES))
    note("100 pages open: CPU of webui and redis, % of a core", app.busy_with_pages(100))
    note("stop with 10 workers, s", app.compose("stop"))
    app.down()
    for workers in (1, 4):
        app.up(workers, **NO_DELAYS)
        note(f"no delays, {workers} worker{'s' * (workers > 1)}, hashes/s", rate())
    app.down()
