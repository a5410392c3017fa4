"""Docker and Compose for the tests, and helpers that inspect containers."""

import os
import re
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path

import requests

from support import wait_until

ROOT = Path(__file__).parents[2]
SERVICES = ("rng", "hasher", "webui", "worker", "redis")
OWN = SERVICES[:4]  # those with an image of this repository
PORTS = {"webui": 8000, "rng": 8001, "hasher": 8002}
PROJECT = "dockercoinstest"
LABEL = f"com.docker.compose.project={PROJECT}"
NOBODY = 65534
HASHED = re.compile(r'^(\S+) (?:::ffff:)?(\S+) .*"POST / HTTP/1.1" 200', re.M)
CI = bool(os.environ.get("CI"))

# Without the settings of the user's shell, and with the classic builder, which every Docker has.
ENV = {name: value for name, value in os.environ.items() if not name.endswith("_DELAY")}
for name in ("REGISTRY", "DEBUG", "COMPOSE_FILE", "COMPOSE_PROFILES"):
    ENV.pop(name, None)
ENV |= {
    "COMPOSE_PROJECT_NAME": PROJECT,
    "TAG": "test",
    "DOCKER_BUILDKIT": "0",
    "COMPOSE_DOCKER_CLI_BUILD": "0",
}

web = requests.Session()
web.trust_env = False  # no proxy to localhost
web.headers = {"Connection": "close"}


def image(service):
    """Return the name of the image that the tests build of `service`."""
    return f"127.0.0.1:30500/dockercoins/{service}:test"


def run(*command, timeout=60, env=None):
    """Return the output of `command` without the trailing newline; a failure shows all of it."""
    env = ENV | (env or {})
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )
    text = f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, text
    return done.stdout.rstrip("\n")


def works(*command):
    """Return whether `command` is installed and succeeds."""
    try:
        run(*command)
    except (AssertionError, OSError, subprocess.TimeoutExpired):
        return False
    return True


def find_docker():
    """Return the path of a Docker client, of one with `docker compose` if there is one."""
    found = [path for path in (shutil.which("docker"), "/usr/bin/docker") if path and works(path)]
    return next((path for path in found if works(path, "compose", "version")), "docker")


DOCKER = find_docker()
COMPOSES = {
    "docker-compose": ("docker-compose",),
    "docker-compose-1.21": ("docker-compose-1.21",),
    "docker compose": (DOCKER, "compose"),
}


def docker(*args, timeout=60):
    """Return what `docker ARGS` prints."""
    return run(DOCKER, *args, timeout=timeout)


def state():
    """Return webui's answer to /json, or None if there is none."""
    try:
        answer = web.get("http://localhost:8000/json", timeout=5)
    except requests.RequestException:
        return None
    return answer.json() if answer.status_code == 200 else None


def grows(seconds, what):
    """Wait up to `seconds` until the counter can be read and has grown after that."""
    deadline = time.monotonic() + seconds
    before = wait_until(state, seconds, f"{what}: /json answers")["hashes"]
    left = deadline - time.monotonic()
    wait_until(
        lambda: int(state()["hashes"] or 0) > int(before or 0), left, f"{what}: the counter grows"
    )


def processes(container):
    """Return the fields of /proc/PID/status of each process of `container`, as it sees them."""
    script = "for p in /proc/[0-9]*; do cat $p/status; echo; done 2>/dev/null"
    parts = [
        dict(line.split(":\t", 1) for line in part.splitlines() if ":\t" in line)
        for part in docker("exec", container, "sh", "-c", script).split("\n\n")
    ]
    return [fields for fields in parts if "Pid" in fields]


def ids(fields):
    """Return all user and group ids of a process, supplementary groups too."""
    return {int(word) for name in ("Uid", "Gid", "Groups") for word in fields[name].split()}


def capabilities(fields):
    """Return all the capabilities that a process has or could gain, as one number."""
    return sum(int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))


class App:
    """The application of docker-compose.yml, driven by one version of Compose."""

    def __init__(self, compose, file="docker-compose.yml"):
        self.command = (*compose, "-f", str(file), "--project-directory", str(ROOT))

    def compose(self, *args, timeout=120, env=None):
        """Return what Compose prints."""
        return run(*self.command, *args, timeout=timeout, env=env)

    def up(self, **scale):
        """Start what is not running, scaled to `scale`, and wait until each worker counts."""
        started, scale = time.time(), {"worker": 1} | scale
        words = [word for name, n in scale.items() for word in ("--scale", f"{name}={n}")]
        self.compose("up", "-d", *words)
        workers = self.containers("worker")
        assert len(workers) == scale["worker"]
        for it in workers:
            wait_until(lambda it=it: "units of work done" in logs(it, started), 10, "counting")

    def down(self):
        """Remove everything including data; retry if a container is just being restarted."""
        command = (*self.command, "down", "-v", "--remove-orphans", "-t", "5")
        wait_until(lambda: works(*command), 30, "down")

    def containers(self, service):
        """Return the ids of the containers of `service`, including stopped ones."""
        labels = (LABEL, f"com.docker.compose.service={service}")
        return docker("ps", "-aq", *(f"--filter=label={label}" for label in labels)).split()

    def posts(self, since=0, by=""):
        """Return when (s) hasher served each hash, to the address `by` if given, by its log."""
        lines = "".join(logs(container, since) for container in self.containers("hasher"))
        found = [stamp for stamp, address in HASHED.findall(lines) if by in ("", address)]
        return sorted(datetime.fromisoformat(stamp[:26] + "+00:00").timestamp() for stamp in found)


def logs(container, since=0):
    """Return the lines of a container's log from `since` (s) on, each with its timestamp."""
    command = (DOCKER, "logs", "-t", "--since", f"{since:.3f}", container)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )
    return done.stdout


def inspect(container, template):
    """Return what `template` selects of a container."""
    return docker("inspect", "--format", template, container)
