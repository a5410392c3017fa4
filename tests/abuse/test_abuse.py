"""Mining while clients abuse the services. FULL=1 makes each abuse last a minute."""

import itertools
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from support.engine import DOCKER, PORTS, SERVICES, docker, inspect, logs, web

SECONDS = 60 if os.environ.get("FULL") == "1" else 6
MEMORY = 143  # MiB, or 150 MB: the most that a container may use
ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
PROBE = 1  # s: what Kubernetes gives a probe unless configured otherwise


@pytest.fixture(scope="module")
def app(built):
    """The application with one worker, shared by all tests: no abuse may have lasting effects."""
    built.down()
    built.up()
    yield built
    built.down()


def only(app, service):
    """Return the one container of `service`."""
    (container,) = app.containers(service)
    return container


def by_worker(app, since=0):
    """Return when (s) hasher served each hash to the worker since `since` (s)."""
    return app.posts(since, by=inspect(only(app, "worker"), ADDRESS))


def rate(app, seconds=SECONDS):
    """Return the units/s that hasher serves to the worker during the next `seconds`."""
    since = time.time()
    time.sleep(seconds)
    times = by_worker(app, since)
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0


@pytest.fixture(scope="module")
def usual(app):
    """Units/s without any abuse."""
    return rate(app, 10)


@contextmanager
def clients(services, count, client):
    """Call `client(service)` in `count` endless threads for each service, in another process."""

    def again_and_again(service):
        while True:
            try:
                client(service)
            except OSError:  # the server may close the connection
                time.sleep(0.05)

    def run():
        signal.alarm(SECONDS + 60)  # ends it even if the test is killed
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # 1500 sockets are more than usual
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        for service in list(services) * count:
            threading.Thread(target=again_and_again, args=[service], daemon=True).start()
        signal.pause()

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextmanager
def memory(containers):
    """Yield a list that is filled at the end: memory of the containers (MiB), by `docker stats`."""
    used, unit = [], {"B": 1 / 1024**2, "KiB": 1 / 1024, "MiB": 1, "GiB": 1024}
    with tempfile.TemporaryFile("w+") as output:
        command = [DOCKER, "stats", "--format", "{{.MemUsage}}", *containers]
        process = subprocess.Popen(command, stdout=output)
        try:
            yield used
        finally:
            process.kill()  # it ignores SIGTERM
            process.wait()
        output.seek(0)
        found = re.findall(r"([\d.]+)([KMG]?i?B) / ", output.read())
        used.extend(float(number) * unit[name] for number, name in found)


def survives(app, services, count, client, connected=0):
    """Assert that probes are answered, nothing restarts and memory is limited; return units/s.

    It was no abuse unless each client connected, and all together at least `connected` times.
    """
    containers = [only(app, service) for service in SERVICES]
    started = [inspect(container, "{{.State.StartedAt}}") for container in containers]
    before = connections.value
    with clients(services, count, client), memory(containers) as used:
        time.sleep(1)  # until the clients have connected
        slowest, since = 0, time.time()
        while time.time() - since < SECONDS:
            for port in PORTS.values():
                asked = time.time()
                assert web.get(f"http://localhost:{port}/healthz", timeout=PROBE).text == "ok\n"
                slowest = max(slowest, time.time() - asked)
            time.sleep(0.2)
        mined = (len(by_worker(app, since)) + 1) / (time.time() - since)  # one is in progress
    print(
        f"{mined:.2f} units/s, at most {max(used):.0f} MiB, probes {1000 * slowest:.0f} ms, "
        f"{connections.value - before} connections"
    )
    assert connections.value - before >= max(connected, count * len(services))
    assert slowest < PROBE
    assert max(used) < MEMORY
    assert [inspect(container, "{{.State.StartedAt}}") for container in containers] == started
    assert not any("Traceback" in logs(container, since) for container in containers)
    return mined


# Opened so far. Without a lock between processes: the one with the clients is killed.
connections, counting = multiprocessing.Value("L", lock=False), threading.Lock()


def connect(service):
    sock = socket.create_connection(("127.0.0.1", PORTS[service]), timeout=30)
    with counting:
        connections.value += 1
    return sock


def read_to_the_end(sock):
    """Send no more; return all that the server sends until it closes."""
    with suppress(OSError):  # already closed, as recv() will show
        sock.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: sock.recv(65536), b""))


def exchange(service, request):
    with connect(service) as sock:
        sock.sendall(request)
        return read_to_the_end(sock)


POST = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
MALFORMED = {
    "no-http": b"\x16\x03\x01\x02\x00\x01\x00\xff\r\n\r\n",
    "bad-length": POST + b"Content-Length: -5\r\n\r\n",
    "two-lengths": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad-chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless-chunk-size": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 1_000_000,
    "half-a-body": POST + b"Content-Length: 100\r\n\r\nhalf",
    "line-of-1-MB": b"GET /" + b"1" * 1_000_000,
}
HEADERS = {
    "header-of-1-MB": GET + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "headers-of-1-MB": GET + b"".join(b"X-%d: %990d\r\n" % (i, i) for i in range(1000)),
}
REFUSED = MALFORMED | HEADERS
BODIES = ("bad-chunk", "endless-chunk-size", "half-a-body")  # 411 or 405 may come first


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("service", PORTS)
def test_malformed_request_is_rejected(app, service, name):
    since, answer = time.time(), b""
    with suppress(ConnectionResetError, BrokenPipeError):  # closed before all was sent
        answer = exchange(service, REFUSED[name])
    statuses = {int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)}
    first = {411 if service == "hasher" else 405} if name in BODIES else {414, 431}
    assert statuses <= {400} | first
    assert statuses or len(REFUSED[name]) > 900_000
    assert web.get(f"http://localhost:{PORTS[service]}/healthz", timeout=PROBE).text == "ok\n"
    assert "Traceback" not in logs(only(app, service), since)


def idle(service):
    with connect(service) as sock:
        sock.settimeout(None)
        sock.recv(1)


slow = itertools.cycle([GET, POST + b"Content-Length: 1000\r\n\r\n"])


def a_byte_a_second(service):
    with connect(service) as sock:
        sock.sendall(next(slow))
        for _ in range(1000):
            sock.sendall(b"x")
            time.sleep(1)


malformed = itertools.cycle(MALFORMED.values())


def send_malformed(service):
    exchange(service, next(malformed))
    time.sleep(0.1)


def pipeline(service):
    exchange(service, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)


def send_body_to_healthz(service):
    with connect(service) as sock:
        sock.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n")
        for _ in range(100):
            sock.sendall(bytes(1024**2))


@pytest.mark.parametrize(("count", "client"), [(500, idle), (100, a_byte_a_second)])
def test_mining_keeps_90_percent_of_its_rate_with_idle_and_slow_clients(app, usual, count, client):
    assert survives(app, PORTS, count, client) >= 0.9 * usual


@pytest.mark.parametrize("service", PORTS)
@pytest.mark.parametrize(
    ("client", "connected"),
    [(send_malformed, 20 * SECONDS), (pipeline, 0), (send_body_to_healthz, 0)],
)
def test_mining_keeps_90_percent_of_its_rate_with_10_clients_that_do_not_stop(
    app, usual, service, client, connected
):
    assert survives(app, [service], 10, client, connected) >= 0.9 * usual


headers = itertools.cycle(HEADERS.values())


def send_1_mb_of_headers(service):
    exchange(service, next(headers))


def send_one_byte_chunks(service):
    exchange(service, POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000)


refused = multiprocessing.Value("b", lock=False)  # whether a request was that must not be


def expect_200(answer):
    """Note whether a request was refused."""
    if not answer.startswith(b"HTTP/1.1 200"):
        refused.value = True


def post_1_mib(service):
    expect_200(exchange(service, POST + b"Content-Length: 1048576\r\n\r\n" + bytes(1024**2)))


slowly = itertools.cycle([True, False])


def draw_1_mib(service):
    """Read it as fast as possible, every other time slowly, so that all are in progress."""
    pause = 0.1 * next(slowly)
    with connect(service) as sock:
        sock.sendall(b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n")
        expect_200(sock.recv(100_000))
        while sock.recv(100_000):
            time.sleep(pause)


def ask_for_json(service):
    answer = b""
    with suppress(OSError):
        answer = exchange(service, b"GET /json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    expect_200(answer)
    time.sleep(1)


@pytest.mark.parametrize(
    ("services", "count", "client", "share"),
    [(PORTS, 10, send_1_mb_of_headers, 0), (PORTS, 5, send_one_byte_chunks, 0),
     (["hasher"], 20, post_1_mib, 0), (["rng"], 50, draw_1_mib, 0.05),
     (["webui"], 200, ask_for_json, 0.5)],
)  # fmt: skip
def test_probes_are_answered_during_a_flood_and_mining_recovers_in_5_s(
    app, usual, services, count, client, share
):
    since = time.time()
    assert survives(app, services, count, client) >= share * usual
    assert not refused.value
    if client is ask_for_json:  # half of what they can ask for, as they use the same CPUs
        answers = re.findall('"GET /json HTTP/1.1" (.*?) ', logs(only(app, "webui"), since))
        assert set(answers) == {"200"} and len(answers) >= 100 * SECONDS
    ended, rates = time.monotonic(), []
    while time.monotonic() < ended + 7 and max(rates, default=0) < 0.9 * usual:
        rates.append(rate(app, 2.5))  # for the third time 5 s after the end
    print("units/s after it:", *(f"{rate:.2f}" for rate in rates))
    assert max(rates) >= 0.9 * usual


def test_every_hash_is_counted_exactly_once_after_all_abuse(app):
    worker = only(app, "worker")
    address = inspect(worker, ADDRESS)  # while it runs
    docker("stop", worker)
    batches = re.findall(r":(\d+) units of work done", logs(worker))
    counted = docker("exec", only(app, "redis"), "redis-cli", "get", "hashes")
    assert len(app.posts(by=address)) == sum(map(int, batches)) == int(counted) > 0
