"""What hasher promises, without a server."""

import hashlib
import io
import time

import pytest

import hasher

LIMIT = 64 * 1024**2
LENGTH = {"wsgi.input_terminated": True}  # as gunicorn passes a body on
CHUNKED = LENGTH | {"HTTP_TRANSFER_ENCODING": "chunked"}


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(hasher, "DELAY", 0)
    return hasher.app.test_client()


def test_index_names_the_container(client):
    answer = client.get("/")
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert answer.text == f"HASHER running on {hasher.socket.gethostname()}\n"


@pytest.mark.parametrize("body", [b"", b"abc", bytes(range(256)), b"x" * 1_000_000], ids=len)
@pytest.mark.parametrize(
    "content_type",
    ["application/octet-stream", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"],
)
def test_hash_is_that_of_the_raw_body_whatever_its_type(client, body, content_type):
    answer = client.post("/", input_stream=io.BytesIO(body), content_type=content_type, content_length=len(body))
    assert answer.text == hashlib.sha256(body).hexdigest()
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")


def test_body_without_a_length_is_hashed_to_its_end(client):
    answer = client.post("/", input_stream=io.BytesIO(b"chunks"), environ_overrides=CHUNKED)
    assert answer.text == hashlib.sha256(b"chunks").hexdigest()


@pytest.mark.parametrize("environ", [LENGTH, CHUNKED], ids=["length", "chunked"])
def test_body_of_the_limit_is_hashed_and_one_byte_more_is_413(client, environ):
    answer = client.post("/", data=bytes(LIMIT), environ_overrides=environ)
    assert (answer.status_code, answer.text) == (200, hashlib.sha256(bytes(LIMIT)).hexdigest())
    answer = client.post("/", data=bytes(LIMIT + 1), environ_overrides=environ)
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (413, "text/plain", 1)


def test_long_body_lets_others_have_a_turn_at_each_piece(client, monkeypatch):
    turns = []
    monkeypatch.setattr(time, "sleep", turns.append)
    client.post("/", data=bytes(10 * hasher.PIECE))
    assert turns == 10 * [0] + [0]  # the last is the delay


def test_cut_off_body_is_no_hash(client):
    answer = client.post("/", input_stream=io.BytesIO(b"half"), environ_overrides=LENGTH | {"CONTENT_LENGTH": "8"})
    assert (answer.status_code, answer.text) == (400, "400 Bad Request: the body ended after 4 of 8 bytes\n")


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/x", 404), ("PUT", "/", 405), ("POST", "/healthz", 405)])
def test_wrong_requests_get_one_line(client, method, path, code):
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (code, "text/plain", 1)


def test_healthz_is_ok(client):
    assert client.get("/healthz").text == "ok\n"


def test_hash_takes_its_delay_and_the_index_does_not(client, monkeypatch):
    slept = []
    monkeypatch.setattr(hasher, "DELAY", 0.1)
    monkeypatch.setattr(time, "sleep", slept.append)
    client.get("/")
    assert slept == []
    client.post("/")
    assert slept == [0.1]
