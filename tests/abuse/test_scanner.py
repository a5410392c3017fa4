"""A scan of the services finds the files of the page and nothing else."""

import itertools
import re
import socket

import gunicorn
import pytest
from support.processes import ROOT, Stack

HTTP = ("rng", "hasher", "webui")
FILES = sorted((ROOT / "webui/files").iterdir())
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}
PAGE = ("/", "/index.html", "/page.css", "/json", "/speed", "/healthz", "/nothing")


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """The three HTTP services, without a Redis: /json is a 503."""
    stack = Stack(tmp_path_factory.mktemp("logs"))
    stack.start(*HTTP).ready()
    yield stack
    assert not any("Traceback" in stack.log(name) for name in HTTP)
    stack.close()


def send(stack, service, head):
    """Send `head` unchanged; return status, headers by lower-case name, and body."""
    with socket.create_connection(("127.0.0.1", stack.ports[service]), timeout=5) as sock:
        sock.sendall(head.encode("latin-1"))
        answer = b"".join(iter(lambda: sock.recv(65536), b"")).decode("latin-1")
    head, body = answer.split("\r\n\r\n", 1)
    start, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(start.split()[1]), headers, body


def ask(stack, target, method="GET", host="x"):
    lines = f"Connection: close\r\nCookie: secret\r\nHost: {host}\r\n"
    head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n"
    return send(stack, "webui", head)


def is_guarded(headers):
    return (
        headers["content-security-policy"].startswith("default-src 'none'; ")
        and headers["x-content-type-options"] == "nosniff"
        and headers["referrer-policy"] == "no-referrer"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_file_is_served_unchanged_with_its_content_type(services, file):
    status, headers, body = ask(services, f"/{file.name}")
    assert (status, body) == (200, file.read_bytes().decode("latin-1"))
    assert headers["content-type"] == TYPES[file.suffix]
    assert is_guarded(headers)


@pytest.mark.parametrize("folder", ["", "files/", "json/"])
def test_path_traversal_is_404(services, folder):
    ups = ("..", "%2e%2e", ".%2E", "%252e%252e", "..;", "..%00", "..%c0%af")
    slashes = ("/", "//", "%2f", "%252F", "\\", "%5c")
    starts = ("/", "%2f", "%252f", "\\", "C:\\", "file:///", "~/", f"{ROOT}/webui/")
    climbs = [(up + slash) * n for up, slash, n in itertools.product(ups, slashes, (1, 3, 9))]
    for start, target in itertools.product((*climbs, *starts), ("webui.py", "etc/passwd")):
        path = f"/{folder}{start}{target}"
        status, headers, body = ask(services, path)
        assert (status, body.count("\n"), is_guarded(headers)) == (404, 1, True), path


@pytest.mark.parametrize("target", ["/.", "/..", "/files/", "/static/", "/index.html%00.css"])
def test_folder_is_not_listed(services, target):
    assert ask(services, target)[0] == 404


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "ANYTHING"]
)
@pytest.mark.parametrize("target", PAGE)
def test_other_methods_are_rejected_and_echo_nothing(services, target, method):
    status, headers, body = ask(services, target, method)
    assert (status, "secret" in body) == (405, False)
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert is_guarded(headers)


@pytest.mark.parametrize("target", PAGE)
def test_head_is_get_without_its_body_and_options_names_the_methods(services, target):
    get, head = ask(services, target), ask(services, target, "HEAD")
    for _, headers, _ in (get, head):
        headers.pop("date")
    assert head == (*get[:2], "")
    status, headers, body = ask(services, target, "OPTIONS")
    assert (status, body, is_guarded(headers)) == (200, "", True)
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:99999", "x y", "[::1", "a,b", "<script>", "..", "\xff",
     "h" * 5000, "x/../y"],
    ids=lambda host: ascii(host[:20]),
)  # fmt: skip
def test_host_header_is_not_reflected(services, host):
    for target in ("/", "//evil.example/%2e%2e", "http://evil.example/"):
        status, headers, body = ask(services, target, host=host)
        assert status in (302, 400, 404)
        assert is_guarded(headers)
        assert headers.get("location", "index.html") == "index.html"
        assert not host or host not in body or host == ".."


@pytest.mark.parametrize("service", HTTP)
@pytest.mark.parametrize(
    "head",
    [
        *(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            for method in ("GET", "POST", "TRACE")
            for path in ("/", "/json", "/nothing", "/99999999999")
        ),
        "GET /<script> HTTP/9.9\r\n\r\n",
        "<script>\r\n\r\n",
        "GET / HTTP/1.1\r\n<script>\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        f"GET /{'1' * 4100} HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n" + "X: y\r\n" * 101 + "\r\n",
    ],
    ids=lambda head: ascii(head[:28]),
)
def test_no_answer_reveals_a_version_or_echoes_markup(services, service, head):
    status, headers, body = send(services, service, head)
    json = (service, headers.get("content-type")) == ("webui", "application/json")
    assert status < 500 or (status, json) == (503, True)
    assert "x-powered-by" not in headers
    assert headers.get("server", "gunicorn") == "gunicorn"
    assert not re.search(rf"python|werkzeug|flask|{re.escape(gunicorn.__version__)}", body, re.I)
    assert "<script>" not in body
