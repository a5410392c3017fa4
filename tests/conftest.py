"""What all tests share: each service's module under its own name, and the images, built once."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), *(str(ROOT / name) for name in ("rng", "hasher", "webui", "worker"))]


@pytest.fixture(scope="session")
def composes():
    """The Composes that are installed, by name, with an engine that answers."""
    from support.engine import COMPOSES, works

    assert works("docker", "info"), "no Docker Engine answers: these tests need one"
    found = {name: command for name, command in COMPOSES.items() if works(*command, "version")}
    assert found, "neither docker-compose nor docker compose is installed"
    return found


@pytest.fixture(scope="session")
def built(composes):
    """The first Compose, once it has built the four images; in the end nothing of the tests is left on the engine."""
    from support.engine import LABEL, App, docker

    def left(*command):
        return docker(*command, "--filter", f"label={LABEL}").split()

    app = App(next(iter(composes.values())))
    for container in left("ps", "-aq"):  # by an interrupted run
        docker("rm", "-f", "-v", container)
    app.down()
    app.compose("build", timeout=240)
    yield app
    app.down()
    assert not left("ps", "-aq") + left("network", "ls", "-q") + left("volume", "ls", "-q"), "something is left behind"


@pytest.fixture
def start_image(built):
    """A function that starts a container of an image like `docker run` and returns its id; it is removed afterwards."""
    from support.engine import LABEL, docker

    started = []

    def start(*args):
        started.append(docker("run", "-d", "--label", LABEL, *args))
        return started[-1]

    yield start
    if started:
        docker("rm", "-f", "-v", *started)
