"""What somebody who scans the services learns and gets: the files of the page, and nothing else."""

import itertools
import re
import socket

import gunicorn
import pytest
from support.processes import ROOT, Stack

HTTP = ("rng", "hasher", "webui")
FILES = ROOT / "webui/files"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE = ("/", "/index.html", "/page.css", "/uplot/uPlot.min.css", "/json", "/healthz", "/nothing")


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """The three that speak HTTP, without a Redis: /json is a 503."""
    stack = Stack(tmp_path_factory.mktemp("logs"))
    stack.start(*HTTP).ready()
    yield stack
    stack.close()


def send(stack, service, head):
    """Send `head` as it stands, which clients would mend; return status, headers by lower-case name, body."""
    with socket.create_connection(("127.0.0.1", stack.ports[service]), timeout=5) as sock:
        sock.sendall(head.encode("latin-1"))
        answer = b"".join(iter(lambda: sock.recv(65536), b"")).decode("latin-1")
    head, body = answer.split("\r\n\r\n", 1)
    start, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(start.split()[1]), headers, body


def ask(stack, target, method="GET", service="webui", **headers):
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in ({"Host": "x"} | headers).items())
    return send(stack, service, f"{method} {target} HTTP/1.1\r\nConnection: close\r\n{lines}\r\n")


def is_guarded(headers):
    return (
        headers["content-security-policy"].startswith("default-src 'none'; ")
        and "frame-ancestors 'none'" in headers["content-security-policy"]
        and headers["x-content-type-options"] == "nosniff"
        and headers["x-frame-options"] == "DENY"
        and headers["referrer-policy"] == "no-referrer"
    )


@pytest.mark.parametrize("file", [*FILES.iterdir(), ROOT / "webui/node_modules/uplot/dist/uPlot.min.css"])
def test_file_is_served_as_it_is_with_its_type(services, file):
    status, headers, body = ask(services, f"/{file.name}" if file.parent == FILES else f"/uplot/{file.name}")
    assert (status, body) == (200, file.read_bytes().decode("latin-1"))
    assert headers["content-type"] == TYPES[file.suffix] + "; charset=utf-8"
    assert is_guarded(headers)


@pytest.mark.parametrize("folder", ["", "uplot/", "json/", "files/"])
def test_no_path_leads_out_of_the_files(services, folder):
    ups = ("..", "%2e%2e", ".%2E", "%252e%252e", "..;", "..%00", "..%c0%af")
    slashes = ("/", "//", "%2f", "%252F", "\\", "%5c")
    targets = ("webui.py", "package.json", "etc/passwd")
    paths = [
        f"/{folder}{(up + slash) * depth}{target}"
        for up, slash, depth, target in itertools.product(ups, slashes, (1, 3, 9), targets)
    ]
    starts = ("/", "%2f", "%252f", "\\", "C:\\", "file:///", "~/", f"{ROOT}/webui/")
    for path in [*paths, *(f"/{folder}{start}{target}" for start in starts for target in targets)]:
        status, headers, body = ask(services, path)
        assert (status, body.count("\n"), is_guarded(headers)) == (404, 1, True), path


@pytest.mark.parametrize("target", ["/uplot", "/uplot/", "/uplot/.", "/.", "/..", "/files/", "/index.html%00.css"])
def test_folder_is_not_listed(services, target):
    assert ask(services, target)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "ANYTHING"])
@pytest.mark.parametrize("target", PAGE)
def test_other_methods_are_refused_and_echo_nothing(services, target, method):
    status, headers, body = ask(services, target, method, Cookie="secret")
    assert status == 405
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert "secret" not in body
    assert is_guarded(headers)


@pytest.mark.parametrize("target", PAGE)
def test_head_is_get_without_its_body_and_options_tells_the_methods(services, target):
    get, head = ask(services, target), ask(services, target, "HEAD")
    for name in ("date", "last-modified"):
        get[1].pop(name, None), head[1].pop(name, None)
    assert head == (*get[:2], "")
    status, headers, body = ask(services, target, "OPTIONS")
    assert (status, body, is_guarded(headers)) == (200, "", True)
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:99999", "x y", "[::1", "a,b", "<script>", "..", "\xff", "h" * 5000, "x/../y"],
    ids=lambda host: ascii(host[:20]),
)
def test_host_header_changes_nothing_but_whether_it_is_served(services, host):
    for target in ("/", "//evil.example/%2e%2e", "http://evil.example/"):
        status, headers, body = ask(services, target, Host=host)
        assert status in (302, 400, 404)
        assert headers.get("location", "/index.html") == "/index.html"
        assert not host or host not in body or host == ".."
        assert is_guarded(headers)


CONDITIONS = {
    "none": ({}, 200),
    "same": ({"If_None_Match": "ETAG"}, 304),
    "any": ({"If_None_Match": "*"}, 304),
    "other": ({"If_None_Match": '"x"'}, 200),
    "not-later": ({"If_Modified_Since": "DATE"}, 304),
    "no-date": ({"If_Modified_Since": "yesterday"}, 200),
    "no-match": ({"If_Match": '"x"'}, 412),
    "range": ({"Range": "bytes=0-3"}, 206),
    "range-of-another": ({"Range": "bytes=0-3", "If_Range": '"x"'}, 200),
    "range-beyond": ({"Range": "bytes=999999-"}, 416),
    "no-range": ({"Range": "bytes=x"}, 416),
}


@pytest.mark.parametrize(("given", "expected"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditional_request_is_answered_by_the_book(services, given, expected):
    _, headers, body = ask(services, "/page.css")
    given = {
        name: value.replace("ETAG", headers["etag"]).replace("DATE", headers["last-modified"])
        for name, value in given.items()
    }
    status, headers, part = ask(services, "/page.css", **given)
    assert status == expected
    assert is_guarded(headers)
    assert expected not in (200, 206, 304) or part == {200: body, 206: body[:4], 304: ""}[status]


@pytest.mark.parametrize("service", HTTP)
@pytest.mark.parametrize(
    "head",
    [
        *(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
          for method in ("GET", "POST", "TRACE") for path in ("/", "/json", "/nothing", "/99999999999")),
        "GET /<script> HTTP/9.9\r\n\r\n", "<script>\r\n\r\n", "GET / HTTP/1.1\r\n<script>\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", f"GET /{'1' * 4100} HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n" + "X: y\r\n" * 101 + "\r\n",
    ],
    ids=lambda head: ascii(head[:28]),
)  # fmt: skip
def test_no_answer_tells_a_version_or_echoes_markup(services, service, head):
    status, headers, body = send(services, service, head)
    assert status < 500 or (service, status, headers["content-type"]) == ("webui", 503, "application/json")
    assert headers.get("server", "gunicorn") == "gunicorn"
    assert "x-powered-by" not in headers
    assert not re.search(rf"python|werkzeug|flask|{re.escape(gunicorn.__version__)}", body, re.I)
    assert "<script>" not in body


def test_nothing_of_all_that_is_a_traceback(services):
    assert [name for name in HTTP if "Traceback" in services.log(name)] == []
