"""The answers of hasher, without a server."""

import hashlib
import io
import socket
import time

import pytest

LIMIT = 1024**2


@pytest.fixture(scope="module")
def hasher(client):
    return client("hasher", HASHER_DELAY="0")


def test_index_names_the_container(hasher):
    answer = hasher.get("/")
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert answer.text == f"HASHER running on {socket.gethostname()}\n"


@pytest.mark.parametrize("body", [b"", b"abc", bytes(range(256)), b"a=b&c" * 1000, bytes(LIMIT)])
@pytest.mark.parametrize(
    "content_type",
    [
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
    ],
)
def test_raw_body_is_hashed_whatever_its_content_type(hasher, body, content_type):
    raw = {"input_stream": io.BytesIO(body), "content_length": len(body)}
    answer = hasher.post("/", content_type=content_type, **raw)
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert answer.text == hashlib.sha256(body).hexdigest()


def test_body_above_1_mib_is_413_in_one_line(hasher):
    answer = hasher.post("/", data=bytes(LIMIT + 1))
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (413, "text/plain", 1)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/x", 404), ("PUT", "/", 405), ("POST", "/healthz", 405)]
)
def test_other_requests_get_a_one_line_error(hasher, method, path, status):
    answer = hasher.open(path, method=method)
    assert (answer.status_code, answer.mimetype) == (status, "text/plain")
    assert answer.text.count("\n") == 1


def test_healthz_is_ok(hasher):
    assert hasher.get("/healthz").text == "ok\n"


@pytest.mark.parametrize(("settings", "delay"), [({}, 0.1), ({"HASHER_DELAY": "0.3"}, 0.3)])
def test_hash_takes_the_configured_delay(client, settings, delay):
    hasher, start = client("hasher", **settings), time.monotonic()
    hasher.post("/")
    assert delay <= time.monotonic() - start < delay + 0.1
