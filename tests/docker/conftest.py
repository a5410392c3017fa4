"""What the tests with a real Docker Engine share: the images, built once, and an engine that is left as it was."""

import pytest
from engine import COMPOSES, LABEL, App, docker, works


def leftovers():
    """Return what is there of the tests' own containers, networks and volumes."""
    commands = (("ps", "-aq"), ("network", "ls", "-q"), ("volume", "ls", "-q"))
    return [line for command in commands for line in docker(*command, "--filter", f"label={LABEL}").split()]


@pytest.fixture(scope="session")
def composes():
    """The Composes that are installed, by name."""
    assert works("docker", "info"), "no Docker Engine answers: these tests need one"
    found = {name: command for name, command in COMPOSES.items() if works(*command, "version")}
    assert found, "neither docker-compose nor docker compose is installed"
    return found


@pytest.fixture(scope="session")
def built(composes):
    """The first Compose, once it has built the four images; in the end nothing of the tests is left."""
    app = App(next(iter(composes.values())))
    app.down()  # what an interrupted run left
    app.compose("build", timeout=240)
    yield app
    app.down()
    assert not leftovers(), "the tests left containers, networks or volumes behind"


@pytest.fixture
def start_image(built):
    """A function that starts a container of an image like `docker run` and returns its id; it is removed afterwards."""
    started = []

    def start(*args):
        started.append(docker("run", "-d", "--label", LABEL, *args))
        return started[-1]

    yield start
    if started:
        docker("rm", "-f", "-v", *started)
