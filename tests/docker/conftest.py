"""Containers of a test alone."""

import pytest
from engine import LABEL, docker


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
