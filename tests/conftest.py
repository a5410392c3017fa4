"""What all tests share: the Flask applications without a server, and the images, built once."""

import os
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture(scope="session")
def client():
    """A function that returns Flask's test client of a service that starts with `settings`."""

    def start(service, **settings):
        with patch.dict(os.environ, settings):
            app = runpy.run_path(str(ROOT / service / f"{service}.py"))["app"]
        return app.test_client()

    return start


@pytest.fixture(scope="session")
def composes():
    """The installed versions of Compose, {name: command}; a Docker Engine must answer."""
    from support.engine import COMPOSES, works

    assert works("docker", "info"), "these tests need a Docker Engine, and none answers"
    found = {name: command for name, command in COMPOSES.items() if works(*command, "version")}
    assert found, "neither docker-compose nor docker compose is installed"
    return found


@pytest.fixture(scope="session")
def built(composes):
    """The application under the first Compose, images built; afterwards nothing of it is left."""
    from support.engine import LABEL, App, docker

    def left(*command):
        return docker(*command, "--filter", f"label={LABEL}").split()

    app = App(next(iter(composes.values())))
    for container in left("ps", "-aq"):  # left by an interrupted run
        docker("rm", "-f", "-v", container)
    app.down()
    app.compose("build", timeout=240)
    yield app
    app.down()
    assert not left("ps", "-aq") + left("network", "ls", "-q") + left("volume", "ls", "-q")


@pytest.fixture
def start_image(built):
    """A function that starts a container of an image and returns its id; removed afterwards."""
    from support.engine import LABEL, docker

    started = []

    def start(*args):
        started.append(docker("run", "-d", "--label", LABEL, *args))
        return started[-1]

    yield start
    if started:
        docker("rm", "-f", "-v", *started)
