"""What all tests share: each service's module under its own name, and the images, built once."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), *(str(ROOT / name) for name in ("rng", "hasher", "webui", "worker"))]


@pytest.fixture(scope="session")
def composes():
    """The Composes that are installed, by name, with an engine that answers."""
    from engine import COMPOSES, works

    assert works("docker", "info"), "no Docker Engine answers: these tests need one"
    found = {name: command for name, command in COMPOSES.items() if works(*command, "version")}
    assert found, "neither docker-compose nor docker compose is installed"
    return found


@pytest.fixture(scope="session")
def built(composes):
    """The first Compose, once it has built the four images; in the end nothing of the tests is left on the engine."""
    from engine import LABEL, App, docker

    app = App(next(iter(composes.values())))
    app.down()  # what an interrupted run left
    app.compose("build", timeout=240)
    yield app
    app.down()
    commands = (("ps", "-aq"), ("network", "ls", "-q"), ("volume", "ls", "-q"))
    left = [line for command in commands for line in docker(*command, "--filter", f"label={LABEL}").split()]
    assert not left, "the tests left containers, networks or volumes behind"
