"""The answers of rng, without a server."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

LIMIT = 1024**2


@pytest.fixture(scope="module")
def rng(client):
    return client("rng", RNG_DELAY="0")


def test_index_names_the_container(rng):
    answer = rng.get("/")
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert answer.text == f"RNG running on {socket.gethostname()}\n"


@pytest.mark.parametrize("count", [0, 1, 32, LIMIT])
def test_draw_returns_the_requested_number_of_random_bytes(rng, count):
    first, second = rng.get(f"/{count}"), rng.get(f"/{count}")
    assert (first.status_code, first.mimetype) == (200, "application/octet-stream")
    assert len(first.data) == first.content_length == count
    assert count < 2 or first.data != second.data


@pytest.mark.parametrize("count", [LIMIT + 1, 99999999999, 10**400])
def test_draw_above_the_limit_is_400_and_names_the_limit_in_one_line(rng, count):
    answer = rng.get(f"/{count}")
    assert (answer.status_code, answer.mimetype) == (400, "text/plain")
    assert str(LIMIT) in answer.text
    assert answer.text.count("\n") == 1


@pytest.mark.parametrize("path", ["/-1", "/abc", "/1e3", "/1.5", "/32/", "/healthz/x", "/static/x"])
def test_other_paths_are_404_in_one_line(rng, path):
    answer = rng.get(path)
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (404, "text/plain", 1)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/32", "/healthz"])
def test_other_methods_are_405_in_one_line(rng, path, method):
    answer = rng.open(path, method=method)
    assert "GET" in answer.headers["Allow"]
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (405, "text/plain", 1)


def test_draw_that_nobody_reads_delays_no_other(rng):
    unread = rng.get(f"/{LIMIT}", buffered=False)
    with ThreadPoolExecutor() as pool, closing(unread):
        assert len(pool.submit(rng.get, "/32").result(timeout=5).data) == 32


def test_healthz_is_ok(rng):
    assert rng.get("/healthz").text == "ok\n"


@pytest.mark.parametrize(("settings", "delay"), [({}, 0.1), ({"RNG_DELAY": "0.3"}, 0.3)])
def test_draw_takes_the_configured_delay(client, settings, delay):
    rng, start = client("rng", **settings), time.monotonic()
    rng.get("/1")
    assert delay <= time.monotonic() - start < delay + 0.1
