"""The contract, tested on the processes that `make run` starts, on other ports."""

import hashlib
import os
import re
import signal
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support import wait_until
from support.processes import ROOT, Stack

LENGTH = b"Host: x\r\nContent-Length: 8\r\n\r\n"
CHUNKED = b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("logs"))
    stack.start("redis", "rng", "hasher", "webui").ready()
    yield stack
    stack.close()


@pytest.fixture
def workers(stack):
    """A function that starts workers; afterwards they are stopped and count what they did."""
    started = []

    def start(count):
        names = [f"worker.{i}" for i in range(count)]
        before = stack.hashes()
        stack.start(*names)
        started.extend(names)
        wait_until(lambda: stack.hashes() > before, 10, "workers count")

    yield start
    for name in started:
        if name in stack.processes:
            status, seconds = stack.stop(name)
            assert (status, seconds < 2) == (0, True)


def seconds_of(url, **request):
    start = time.monotonic()
    requests.get(url, timeout=10, **request).raise_for_status()
    return time.monotonic() - start


def at_once(count, url, method="GET", status=200):
    """Send `count` requests at once and return the seconds until all have got this status."""
    start = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        answers = pool.map(lambda _: requests.request(method, url, timeout=10), range(count))
        assert {answer.status_code for answer in answers} == {status}
    return time.monotonic() - start


def exchange(stack, service, request, half_close=False):
    """Return all that the server sends on one connection until it closes it."""
    with socket.create_connection(("127.0.0.1", stack.ports[service]), timeout=5) as sock:
        sock.sendall(request)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def mines_at(stack, seconds, low, high):
    """Assert a rate (units/s) in one of three tries: other load on the machine lowers it."""
    rates = []
    while len(rates) < 3 and max(rates, default=0) < low:
        rates.append(stack.rate(seconds))
    print("units/s:", *(f"{rate:.2f}" for rate in rates))
    assert low <= max(rates) <= high


@pytest.mark.parametrize(
    ("service", "path", "text"),
    [
        ("rng", "/", f"RNG running on {socket.gethostname()}\n"),
        ("hasher", "/", f"HASHER running on {socket.gethostname()}\n"),
        *((name, "/healthz", "ok\n") for name in ("rng", "hasher", "webui")),
    ],
)
def test_index_and_healthz_answer_as_in_the_contract(stack, service, path, text):
    answer = requests.get(stack.url(service, path), timeout=5)
    assert (answer.status_code, answer.text) == (200, text)
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_draw_and_hash_answer_as_in_the_contract(stack):
    drawn = requests.get(stack.url("rng", "/32"), timeout=5)
    assert (len(drawn.content), drawn.headers["Content-Length"]) == (32, "32")
    assert drawn.headers["Content-Type"] == "application/octet-stream"
    hashed = requests.post(stack.url("hasher"), data=drawn.content, timeout=5)
    assert hashed.headers["Content-Type"].startswith("text/plain")
    assert hashed.text == hashlib.sha256(drawn.content).hexdigest()


@pytest.mark.parametrize("size", [0, 32, 1024**2])
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_body_of_up_to_1_mib_is_hashed_whatever_its_content_type(stack, size, content_type):
    body, headers = bytes(size), {"Content-Type": content_type}
    answer = requests.post(stack.url("hasher"), data=body, headers=headers, timeout=5)
    assert (answer.status_code, answer.text) == (200, hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\n" + LENGTH + b"half", 400),
        (b"POST / HTTP/1.1\r\n" + LENGTH.replace(b"8", b"1048577"), 413),
        (b"POST / HTTP/1.1\r\n" + CHUNKED + b"4\r\nbody\r\n0\r\n\r\n", 411),
    ],
    ids=["cut-short", "above-1-mib", "chunked"],
)
def test_hasher_rejects_other_bodies_with_one_line(stack, request_, status):
    head, text = exchange(stack, "hasher", request_, half_close=True).split(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert text.count(b"\n") == 1
    if status == 400:
        assert text == b"400 The body is shorter than its Content-Length.\n"


@pytest.mark.parametrize(
    ("service", "path"), [("rng", "/1"), ("hasher", "/"), ("webui", "/healthz")]
)
def test_server_closes_the_connection_after_each_answer(stack, service, path):
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n".encode()
    start = time.monotonic()
    assert exchange(stack, service, request).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("name", ["rng", "hasher", "webui"])
def test_all_listen_on_ipv6_and_ipv4(stack, name):
    if not socket.has_dualstack_ipv6():
        pytest.skip("the kernel has no IPv6")
    for host in ("127.0.0.1", "[::1]"):
        assert requests.get(f"http://{host}:{stack.ports[name]}/healthz", timeout=5).ok


def test_rng_serves_one_draw_at_a_time(stack):
    assert 1 <= at_once(10, stack.url("rng", "/1")) < 1.5


def test_page_can_be_edited_while_webui_runs(stack):
    file = ROOT / f"webui/files/edited-{os.getpid()}.txt"
    try:
        for text in "first", "second":
            file.write_text(text)
            assert requests.get(stack.url("webui", f"/{file.name}"), timeout=5).text == text
    finally:
        file.unlink()


def test_hasher_serves_many_at_a_time(stack):
    assert at_once(10, stack.url("hasher"), "POST") < 0.6


def test_access_log_is_gunicorns_without_the_probes(stack):
    requests.get(stack.url("rng", "/healthz"), timeout=5)
    requests.get(stack.url("rng", "/7"), headers={"User-Agent": "a test"}, timeout=5)
    wait_until(lambda: stack.lines("GET /7 ", "rng"), 5, "the draw is logged")
    line = r'(::ffff:)?127\.0\.0\.1 - - \[.+\] "GET /7 HTTP/1\.1" 200 7 "-" "a test"'
    assert re.fullmatch(line, stack.lines("GET /7 ", "rng")[0])
    assert not stack.lines("healthz", "rng")


def test_access_log_escapes_quotes_in_the_path(stack):
    exchange(stack, "rng", b'GET /a" HTTP/1.0\r\n\r\n')
    wait_until(lambda: stack.lines(r'"GET /a\" HTTP/1.0" 404', "rng"), 5, "the quote is escaped")


def test_one_worker_mines_at_3_1_to_3_34_even_with_20_idle_connections_to_rng(stack, workers):
    workers(1)
    numbers = lambda: requests.get(stack.url("webui", "/json"), timeout=5).json()  # noqa: E731
    first = numbers()
    mines_at(stack, 20, 3.1, 3.34)
    last = numbers()  # from two of these, the original's page calculates the speed
    assert 2.8 < (int(last["hashes"]) - int(first["hashes"])) / (last["now"] - first["now"]) < 3.6
    idle = [socket.create_connection(("127.0.0.1", stack.ports["rng"])) for _ in range(20)]
    mines_at(stack, 10, 3.1, 3.34)
    for connection in idle:
        connection.close()


def test_four_workers_wait_for_rng(stack, workers):
    workers(4)
    mines_at(stack, 15, 9.0, 10.05)


def test_ten_workers_queue_at_rng_and_not_at_hasher_or_at_healthz(stack, workers):
    workers(10)
    wait_until(lambda: seconds_of(stack.url("rng")) > 0.5, 10, "a queue at rng")
    paths = [("rng", "/"), ("hasher", "/"), ("rng", "/healthz"), ("hasher", "/healthz")]
    rng, *others = (
        statistics.median(seconds_of(stack.url(*path)) for _ in range(9)) for path in paths
    )
    assert 0.5 <= rng <= 1.0
    assert others[0] < 0.05
    assert max(others) < 0.1


def test_counter_equals_what_hasher_served_and_coins_are_hashes_of_their_values(stack):
    """The workers of the previous tests are stopped, so each has counted all its units."""
    posts = stack.lines('"POST / HTTP/1.1" 200', "hasher")
    by_workers = [line for line in posts if "python-requests" not in line]
    assert len(by_workers) == stack.logged() == stack.hashes() > 50
    wallet = stack.db.hgetall("wallet")
    assert wallet
    assert all(coin.startswith(b"0") for coin in wallet)
    assert all(hashlib.sha256(value).hexdigest().encode() == coin for coin, value in wallet.items())


@pytest.mark.parametrize("path", ["/json", "/speed"])
def test_webui_answers_503_within_2_s_while_redis_hangs_or_is_down_and_recovers(stack, path):
    url = stack.url("webui", path)
    for stop, start in (
        (lambda: stack.send("redis", signal.SIGSTOP), lambda: stack.send("redis", signal.SIGCONT)),
        (lambda: stack.stop("redis", signal.SIGKILL), lambda: stack.start("redis").ready()),
    ):
        stop()
        assert at_once(40, url, status=503) < 2
        answer = requests.get(url, timeout=5)
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        assert seconds_of(stack.url("webui", "/healthz")) < 1
        start()
        assert requests.get(url, timeout=5).status_code == 200


@pytest.mark.parametrize("name", ["webui", "hasher", "rng"])
def test_service_stops_within_2_s_with_status_0(stack, name):
    status, seconds = stack.stop(name)
    assert (status, seconds < 2) == (0, True)
