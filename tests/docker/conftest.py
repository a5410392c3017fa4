"""Images built as from a clone with umask 077, and the application that most tests share."""

import os
import shutil

import pytest
from support.browser import MISSING, browser, find
from support.engine import CI, LABEL, OWN, ROOT, App, docker, run


def left():
    """Return the containers, networks and volumes of the tests."""
    kinds = (("ps", "-a"), ("network", "ls"), ("volume", "ls"))
    return [it for kind in kinds for it in docker(*kind, "-q", f"--filter=label={LABEL}").split()]


@pytest.fixture(scope="session")
def built(composes, tmp_path_factory):
    """The first Compose, with the four images built from files that only their owner can read."""
    copy = tmp_path_factory.mktemp("clone")
    for name in run("git", "ls-files", "docker-compose.yml", *OWN).split():
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for folder, _, files in os.walk(copy):
        os.chmod(folder, 0o700)
        for file in files:
            os.chmod(f"{folder}/{file}", 0o600)
    compose = next(iter(composes.values()))
    app = App(compose)
    for container in docker("ps", "-aq", f"--filter=label={LABEL}").split():
        docker("rm", "-f", "-v", container)  # left by an interrupted run
    app.down()
    run(*compose, "-f", f"{copy}/docker-compose.yml", "build", timeout=240)
    yield app
    app.down()
    assert left() == []


@pytest.fixture
def app(built):
    """The application with all services and one worker, whatever the previous test did."""
    built.up()
    return built


@pytest.fixture
def chromium():
    """A headless Chromium."""
    if not find():
        (pytest.fail if CI else pytest.skip)(MISSING)
    with browser() as chromium:
        yield chromium


@pytest.fixture
def need():
    """A function that skips the test, or fails it in CI, unless these commands are installed."""

    def need(*commands):
        for command in commands:
            if not shutil.which(command):
                (pytest.fail if CI else pytest.skip)(f"{command} is not installed")

    return need
