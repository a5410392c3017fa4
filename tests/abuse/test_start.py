"""How soon mining starts, on a machine that does nothing else."""

import time

import pytest
from support import wait_until
from support.engine import CI, COMPOSES, App, state

FIRST_HASH = 4  # seconds


@pytest.mark.parametrize("name", COMPOSES)
def test_first_hash_is_counted_within_4_s_of_up(composes, built, name):
    if name not in composes:
        (pytest.fail if CI else pytest.skip)(f"{name} is not installed")
    app, seconds = App(composes[name]), []
    while len(seconds) < 3 and min(seconds, default=FIRST_HASH) >= FIRST_HASH:
        app.down()
        began = time.monotonic()
        app.compose("up", "-d")
        wait_until(lambda: state()["hashes"], 15, "the first hash is counted")
        seconds.append(time.monotonic() - began)
    app.down()
    print("first hash after", *(f"{each:.1f} s" for each in seconds))
    assert min(seconds) < FIRST_HASH
