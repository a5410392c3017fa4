"""What worker takes for an answer, from a real HTTP server."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import services

import worker


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(dict(self.headers) | {"client": self.client_address, "body": self.body()})
            self.wfile.write(server.answer)
            self.close_connection = True

        do_POST = do_GET

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(url):
    return services.requests.Request("GET", url, services.CLOSE).prepare()


def answer(body, status="200 OK", length=None):
    return b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        length or len(body),
        body,
    )


def test_exact_answer_is_returned(server):
    server.answer = answer(b"x" * 32)
    assert services.ask("rng", get(server.url), 32) == b"x" * 32


@pytest.mark.parametrize(
    "bad",
    [
        answer(b"x" * 31), answer(b"x" * 33), answer(b""), answer(b"x" * 32, "500 Internal Server Error"),
        answer(b"x" * 32, "403 Forbidden"), answer(b"x" * 32, "201 Created"), answer(b"x" * 32, "302 Found"),
        answer(b"x" * 16, length=32), b"", b"nonsense\r\n\r\n", answer(b"x" * 10_000_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=range(12),
)  # fmt: skip
def test_any_other_answer_is_an_error_of_rng(server, bad):
    server.answer = bad
    with pytest.raises(services.Trouble, match="rng"):
        services.ask("rng", get(server.url), 32)


def test_nobody_listening_is_named():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(services.Trouble) as error:
            services.ask("rng", get(f"http://127.0.0.1:{sock.getsockname()[1]}/"), 32)
    assert error.value.args == ("rng", "[Errno 111] Connection refused")


def test_each_request_has_a_connection_of_its_own(server):
    server.answer = answer(b"x" * 32)
    for _ in range(3):
        services.ask("rng", get(server.url), 32)
    assert len({request["client"] for request in server.requests}) == 3
    assert {request["Connection"] for request in server.requests} == {"close"}


def test_the_bytes_are_posted_as_an_octet_stream(server, monkeypatch):
    server.answer = answer(b"0" * 64)
    draw, it = services.ask, worker.Worker()
    monkeypatch.setattr(services.HASH, "url", server.url)
    monkeypatch.setattr(services, "ask", lambda who, *args: b"y" * 32 if who == "rng" else draw(who, *args))
    it.work()
    assert server.requests[0]["Content-Type"] == "application/octet-stream"
    assert server.requests[0]["body"] == b"y" * 32
    assert it.batch.coins == ["0" * 64, b"y" * 32]


def test_proxies_and_passwords_of_the_environment_are_not_looked_up(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.answer = answer(b"x" * 32)
    assert services.ask("rng", get(server.url), 32)


def test_silence_is_trouble_once_the_time_is_up(monkeypatch):
    monkeypatch.setattr(services, "TIMEOUT", (1, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(services.Trouble) as error:
        services.ask("rng", get(f"http://127.0.0.1:{silent.getsockname()[1]}/"), 32)
    assert error.value.args == ("rng", "timed out")
