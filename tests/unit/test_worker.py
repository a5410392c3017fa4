"""The worker as a process, with stubs of rng and hasher and a fake Redis."""

import contextlib
import hashlib
import itertools
import re
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import wait_until
from support.processes import Proxy, Stack, free_port

DRAWS = [bytes([n]) * 32 for n in range(256)]
DATA = next(data for data in DRAWS if hashlib.sha256(data).hexdigest().startswith("0"))
COIN = hashlib.sha256(DATA).hexdigest()


def answer(body, status="200 OK", length=None):
    """Return the bytes of an HTTP answer, with a Content-Length that may be wrong."""
    length = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


class Stub(ThreadingHTTPServer):
    """Stub of rng or hasher: records requests, answers `answer` once `go_on` is set.

    The first `at_once` bytes of the answer are sent before that.
    """

    daemon_threads, block_on_close = True, False

    class RequestHandlerClass(BaseHTTPRequestHandler):
        def do_GET(self):
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.at, self.answer = time.time(), self.server.answer
            self.server.requests.append(self)
            at_once = self.server.at_once
            self.wfile.write(self.answer[:at_once])
            self.server.go_on.wait(10)
            time.sleep(self.server.delay)
            self.wfile.write(self.answer[at_once:])
            self.server.answered += 1
            self.close_connection = self.server.closes

        do_POST = do_GET

        def log_message(self, *_):
            pass

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), self.RequestHandlerClass)
        self.answer, self.delay, self.requests, self.go_on = answer, 0, [], threading.Event()
        self.answered, self.at_once, self.closes = 0, 0, True
        self.go_on.set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def close(self):
        self.go_on.set()
        self.shutdown()
        self.server_close()


@pytest.fixture
def rng():
    stub = Stub(answer(DATA))
    yield stub
    stub.close()


@pytest.fixture
def hasher():
    stub = Stub(answer(COIN.encode()))
    yield stub
    stub.close()


@pytest.fixture
def proxy(redis_port):
    return Proxy(redis_port)


@pytest.fixture
def stack(tmp_path, redis_port, proxy, rng, hasher):
    """The services around a worker, which reaches Redis through the proxy."""
    urls = {"RNG_URL": rng.url, "HASHER_URL": hasher.url, "WORKER_DELAY": "0.02"}
    stack = Stack(tmp_path, REDIS_URL=f"redis://127.0.0.1:{redis_port}", **urls)
    stack.env["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}"
    yield stack
    stack.close()


@pytest.fixture
def mining(stack):
    """The same with a worker that has counted its first unit."""
    stack.start("worker")
    wait_until(stack.logged, 5, "the first unit is counted")
    return stack


def all_is_counted_once(stack, hasher):
    """Assert that hasher, the log, the counter and the chart have the same number of units."""
    assert stack.stop("worker")[0] == 0
    assert len(hasher.requests) == stack.logged() == stack.hashes() > 0
    assert sum(speeds(stack.db).values()) == pytest.approx(stack.hashes(), abs=0.01)
    assert min(speeds(stack.db).values()) >= 0


def warnings(stack, port):
    return [line for line in stack.lines(f"127.0.0.1:{port}") if line.startswith("WARNING:worker:")]


def speeds(db):
    keys = list(db.scan_iter("speed:*"))
    return {int(key[6:]): float(value) for key, value in zip(keys, db.mget(keys), strict=True)}


def test_unit_of_work_posts_32_bytes_from_rng_to_hasher_as_an_octet_stream(mining, rng, hasher):
    draw, post = rng.requests[0], hasher.requests[0]
    assert (draw.command, draw.path) == ("GET", "/32")
    assert (post.command, post.path, post.body) == ("POST", "/", DATA)
    assert post.headers["Content-Type"] == "application/octet-stream"


def test_each_request_has_its_own_connection_even_if_the_service_keeps_it_open(stack, rng, hasher):
    for stub in rng, hasher:
        stub.closes, stub.answer = False, stub.answer.replace(b"Connection: close\r\n", b"")
    stack.start("worker")
    wait_until(lambda: len(hasher.requests) > 5, 5, "some units")
    for stub in rng, hasher:
        clients = [each.client_address for each in stub.requests]
        assert len(set(clients)) == len(clients)


def test_proxy_variables_of_the_environment_are_ignored(stack):
    stack.start("worker", http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    wait_until(stack.hashes, 5, "the first unit is counted")


def test_first_unit_is_counted_at_once_and_then_about_once_a_second(mining):
    assert mining.lines("units of work")[0] == (
        "INFO:worker:1 units of work done, updating hash counter"
    )
    start = time.monotonic()
    wait_until(lambda: len(mining.lines("units of work done")) == 4, 5, "three more counts")
    assert 2.5 < time.monotonic() - start < 4


def test_coin_is_stored_in_the_wallet_and_logged(mining):
    assert mining.db.hgetall("wallet") == {COIN.encode(): DATA}
    assert f"INFO:worker:Coin found: {COIN[:8]}..." in mining.log("worker").splitlines()


def test_hash_that_does_not_begin_with_0_is_not_a_coin(stack, hasher):
    hasher.answer = answer(b"1" + b"0" * 63)
    stack.start("worker")
    wait_until(stack.hashes, 5, "the first unit is counted")
    assert not stack.db.exists("wallet")
    assert not stack.lines("Coin found")


@pytest.mark.parametrize(("debug", "logged"), [("y", True), ("", False)])
def test_each_unit_is_logged_only_with_debug(stack, debug, logged):
    stack.start("worker", DEBUG=debug)
    wait_until(stack.hashes, 5, "the first unit is counted")
    line = f"DEBUG:worker:One unit of work: {COIN[:8]}..."
    assert (line in stack.log("worker").splitlines()) == logged


WRONG = {
    "rng-500": answer(DATA, "500 Internal Server Error"),
    "rng-201": answer(DATA, "201 Created"),
    "rng-31-bytes": answer(DATA[:31]),
    "rng-33-bytes": answer(DATA + b"x"),
    "rng-empty-body": answer(b""),
    "rng-half-a-body": answer(DATA[:16], length=32),
    "rng-bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "rng-negative-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
    "rng-endless-body": answer(DATA, length=10**19),
    "rng-long-body": answer(DATA * 100_000),
    "rng-redirect": b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    "rng-nothing": b"",
    "rng-not-http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "rng-blank-line": b"\r\n",
    "rng-control-characters": b"\x1b[2J\rSSH\r\n",
    "hasher-403": answer(COIN.encode(), "403 Forbidden"),
    "hasher-empty-body": answer(b""),
    "hasher-not-hex": answer(COIN[:63].encode() + b"g"),
    "hasher-newline": answer(COIN[:63].encode() + b"\n"),
    "hasher-upper-case": answer(COIN[:63].encode() + b"A"),
    "hasher-not-ascii": answer(b"\xff" * 64),
    "hasher-bad-header": b"HTTP/1.1 200 OK\r\n\xff\r\n\r\n" + COIN.encode()[:5],
}
CAUSES = {
    "rng-500": "500 with 32 bytes",
    "rng-31-bytes": "200 with 31 bytes",
    "rng-long-body": "200 with 1000 bytes",
    "hasher-403": "403 with 64 bytes",
    "hasher-not-hex": "200 with 64 bytes",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answer_is_logged_and_not_counted(stack, rng, hasher, name):
    stub = rng if name.startswith("rng") else hasher
    right, stub.answer = stub.answer, WRONG[name]
    stack.start("worker")
    wait_until(lambda: len(warnings(stack, stub.server_port)) > 1, 5, "each attempt is logged")
    assert not stack.db.exists("hashes", "wallet")
    stub.answer = right
    wait_until(stack.hashes, 5, "the next unit is counted")
    assert "Traceback" not in stack.log("worker")
    cause = re.compile(r".*/(32)?: [ -~]+; trying again")
    for line in warnings(stack, stub.server_port):
        assert cause.fullmatch(line) and CAUSES.get(name, "") in line
    assert stack.stop("worker")[0] == 0
    served = sum(it.answer != WRONG[name] for it in hasher.requests)
    assert served == stack.logged() == stack.hashes()


@pytest.mark.parametrize("setting", ["RNG_URL", "HASHER_URL", "REDIS_URL"])
def test_each_failed_attempt_is_logged_with_host_port_and_cause(stack, setting):
    scheme, port = stack.env[setting].split(":")[0], free_port()
    stack.start("worker", **{setting: f"{scheme}://127.0.0.1:{port}"})
    lines = wait_until(lambda: len(it := warnings(stack, port)) > 1 and it, 5, "the attempts")
    assert all("Connection refused" in line and "trying again" in line for line in lines)


def test_password_of_redis_is_not_logged(stack):
    stack.start("worker", REDIS_URL=f"redis://:secret@127.0.0.1:{(port := free_port())}")
    wait_until(lambda: warnings(stack, port), 5, "an attempt is logged")
    assert "secret" not in stack.log("worker")


@contextlib.contextmanager
def dropping_packets(port=0):
    """Drop new connections to a port, which is returned: the backlog of its listener is full."""
    with contextlib.ExitStack() as full:
        server = full.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
        for _ in range(2):
            client = full.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_connecting_times_out_after_3_s(stack):
    with dropping_packets() as port:
        start = time.monotonic()
        stack.start("worker", RNG_URL=f"http://127.0.0.1:{port}")
        wait_until(lambda: warnings(stack, port), 6, "the attempt is logged")
        assert time.monotonic() - start > 3


def test_back_off_doubles_from_0_1_to_2_s_and_resets_after_success(stack, rng):
    right, rng.answer = rng.answer, WRONG["rng-500"]
    stack.start("worker", WORKER_DELAY="0")
    wait_until(lambda: len(rng.requests) >= 3, 5, "some attempts")
    rng.answer = right
    wait_until(stack.hashes, 5, "a unit is counted")
    rng.answer = WRONG["rng-500"]

    def failed():
        """Return the requests since the last one with the right answer."""
        later = itertools.takewhile(lambda it: it.answer != right, reversed(rng.requests))
        return list(later)[::-1]

    wait_until(lambda: len(failed()) > 6, 12, "more attempts")
    gaps = [b.at - a.at for a, b in itertools.pairwise(failed())]
    assert gaps[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2], abs=0.1)
    assert gaps[0] > 0.05


@pytest.mark.parametrize("failure", ["refuses", "silent", "stops-halfway", "drops-packets"])
@pytest.mark.parametrize("name", ["rng", "hasher"])
def test_finished_units_are_counted_while_a_service_does_not_answer(
    mining, rng, hasher, name, failure
):
    before, stub = mining.hashes(), {"rng": rng, "hasher": hasher}[name]
    wait_until(lambda: mining.hashes() > before, 5, "another count")
    time.sleep(0.2)  # some more units are finished
    with contextlib.ExitStack() as until_the_end:
        if failure in ("silent", "stops-halfway"):
            stub.at_once = 40 if failure == "stops-halfway" else 0
            stub.go_on.clear()  # for 10 s
        else:
            stub.close()
        if failure == "drops-packets":
            until_the_end.enter_context(dropping_packets(stub.server_port))
        assert hasher.answered > mining.hashes()
        wait_until(lambda: mining.hashes() == hasher.answered, 2, "all is counted")
    if not stub.go_on.is_set():
        stub.go_on.set()
        all_is_counted_once(mining, hasher)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_worker_finishes_its_unit_counts_it_and_exits_with_0(mining, hasher, number):
    hasher.go_on.clear()
    served = len(hasher.requests)
    wait_until(lambda: len(hasher.requests) > served, 5, "a unit is in progress")
    threading.Timer(0.5, hasher.go_on.set).start()
    status, seconds = mining.stop("worker", number)
    assert (status, 0.4 < seconds < 1.5) == (0, True)
    assert len(hasher.requests) == mining.logged() == mining.hashes()


@pytest.mark.parametrize("redis", ["refused", "silent"])
def test_worker_stopped_without_redis_logs_once_how_many_units_remain_uncounted_and_exits_with_1(
    mining, proxy, hasher, redis
):
    proxy.close() if redis == "refused" else setattr(proxy, "request", lambda *_: False)
    wait_until(lambda: warnings(mining, proxy.port), 5, "Redis is unreachable")
    status, seconds = mining.stop("worker")
    assert (status, seconds < 2) == (1, True)
    (line,) = mining.lines("uncounted")
    assert int(re.search(r"(\d+) units of work remain uncounted", line)[1]) == (
        len(hasher.requests) - mining.hashes()
    )


def test_worker_stopped_while_redis_is_slow_counts_everything(mining, proxy, hasher):
    proxy.request = lambda *_: time.sleep(0.4) or True  # it may take 1 s
    served = len(hasher.requests)
    wait_until(lambda: len(hasher.requests) > served, 5, "another unit")
    all_is_counted_once(mining, hasher)


@pytest.mark.parametrize(("redis", "share"), [("refused", 1 / 2), ("silent", 1 / 3)])
def test_mining_continues_while_redis_is_unreachable(stack, rng, hasher, proxy, redis, share):
    rng.delay = hasher.delay = 0.1
    stack.start("worker", WORKER_DELAY="0.1")
    wait_until(stack.hashes, 5, "the first unit is counted")
    proxy.close() if redis == "refused" else setattr(proxy, "request", lambda *_: False)
    wait_until(lambda: warnings(stack, proxy.port), 5, "Redis is unreachable")
    before = len(hasher.requests)
    time.sleep(4)
    assert (len(hasher.requests) - before) / 4 > share * 3.2


def test_work_done_while_redis_was_unreachable_is_counted_in_the_seconds_of_the_work(
    mining, hasher, proxy
):
    proxy.close()
    since = int(time.time()) + 1
    wait_until(lambda: time.time() > since + 4, 5, "Redis is unreachable for some seconds")
    proxy.open()
    all_is_counted_once(mining, hasher)
    done = [int(each.at) for each in hasher.requests]
    for second in range(since, since + 3):
        assert speeds(mining.db)[second] == pytest.approx(done.count(second), rel=0.1, abs=2)


def test_speed_adds_up_to_the_counter_and_expires(mining, hasher):
    wait_until(lambda: len(mining.lines("units of work done")) > 2, 5, "some counts")
    all_is_counted_once(mining, hasher)
    assert all(250 < mining.db.ttl(key) <= 300 for key in mining.db.scan_iter("speed:*"))


def test_key_of_a_worker_expires_after_a_day(mining):
    (key,) = mining.db.scan_iter("worker:*")
    assert 86000 < mining.db.ttl(key) <= 86400


def test_other_programs_may_add_to_the_counter(stack, hasher):
    stack.db.set("hashes", 1000)
    stack.start("worker")
    wait_until(lambda: stack.hashes() > 1000, 5, "the first unit is counted")
    stack.db.incrby("hashes", 1000)
    assert stack.stop("worker")[0] == 0
    assert stack.hashes() == 2000 + len(hasher.requests)


def test_lost_reply_counts_nothing_twice(mining, hasher, proxy):
    lost = []

    def request(data, sink):
        if b"EXEC" in data and not lost:
            lost.append(sink)
            proxy.reply = lambda *_: False
        elif sink not in lost:  # the retry, on a new connection
            proxy.reply = None
        return True

    proxy.request = request
    logged = mining.logged()
    wait_until(lambda: lost and mining.logged() > logged, 5, "the retry has its reply")
    all_is_counted_once(mining, hasher)


@pytest.mark.parametrize("late", ["before-the-retry", "after-the-retry"])
def test_first_attempt_that_arrives_late_counts_nothing_twice(mining, hasher, proxy, late):
    held, replies = [], []

    def arrive():
        server, data = held[0]
        proxy.reply = lambda data, _: replies.append(data) or True
        server.sendall(data)
        wait_until(lambda: replies, 2, "Redis has answered the first attempt")
        proxy.reply = None

    def request(data, sink):
        if b"EXEC" not in data:
            return True
        held.append((sink, data))
        if len(held) == 1:
            proxy.kept.append(sink)
        elif len(held) == 2 and late == "before-the-retry":  # which has read but not written
            arrive()
        return len(held) > 1

    proxy.request = request
    wait_until(lambda: len(held) > 2, 8, "the retry")
    if late == "after-the-retry":
        arrive()
    assert replies
    all_is_counted_once(mining, hasher)


def test_transaction_without_a_reply_is_logged_at_each_attempt_and_mining_continues(
    mining, proxy, hasher
):
    proxy.request = lambda data, _: b"EXEC" not in data
    wait_until(lambda: len(warnings(mining, proxy.port)) > 1, 8, "attempts are logged")
    served = len(hasher.requests)
    wait_until(lambda: len(hasher.requests) > served, 5, "another unit")
    proxy.request = None
    all_is_counted_once(mining, hasher)


def test_only_new_units_are_counted_after_redis_lost_its_data(mining, hasher, proxy):
    proxy.request = lambda data, _: b"EXEC" not in data
    time.sleep(0.2)
    before = mining.logged()
    mining.db.flushall()
    proxy.request = None
    wait_until(mining.hashes, 5, "the worker counts again")
    assert mining.stop("worker")[0] == 0
    assert mining.hashes() == len(hasher.requests) - before


@pytest.mark.parametrize("key", ["hashes", "wallet"])
def test_key_of_another_type_is_logged_at_each_attempt_and_mining_continues(mining, proxy, key):
    mining.db.delete(key)
    mining.db.rpush(key, "by hand")
    wait_until(lambda: len(warnings(mining, proxy.port)) > 1, 5, "attempts are logged")
    assert "WRONGTYPE" in warnings(mining, proxy.port)[0]
    mining.db.delete("hashes", "wallet")
    wait_until(lambda: mining.hashes() and mining.db.exists("wallet"), 5, "it counts again")
