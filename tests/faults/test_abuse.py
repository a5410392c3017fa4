"""What clients may do to the containers while these mine. FULL=1 makes each abuse last a minute."""

import itertools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress

import pytest
import requests
from support import wait_until
from support.engine import DOCKER, PORTS, SERVICES, docker, inspect, logs, web

SECONDS = 60 if os.environ.get("FULL") == "1" else 6
MEMORY = 143  # MiB, or 150 MB: the most that a container may use
PATIENCE = 1  # s: what Kubernetes gives a probe unless told otherwise


@pytest.fixture(scope="module")
def app(built):
    """The application with one worker, the same for all abuses: none may leave a trace."""
    built.down()
    built.up()
    yield built
    built.down()


def only(app, service):
    """Return the one container of `service`."""
    (container,) = app.containers(service)
    return container


def address(app):
    """Return the worker's IP address, which tells its requests from the abusers'."""
    return inspect(only(app, "worker"), "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")


def mined(app, since):
    """Return when (s) hasher served each hash to the worker since then."""
    return app.posts(since, by=address(app))


@pytest.fixture(scope="module")
def usual(app):
    """Hashes/s while nobody abuses anything."""
    since = time.time()
    wait_until(lambda: len(mined(app, since)) > 30, 30, "30 units of work")
    times = mined(app, since)
    return (len(times) - 1) / (times[-1] - times[0])


class Abuse:
    """`count` threads that call `client()` again and again, in a process of their own that is killed at the end."""

    def __init__(self, count, client):
        self.count, self.client, self.rounds = count, client, multiprocessing.Value("L")
        self.process = multiprocessing.get_context("fork").Process(target=self.run, daemon=True)

    def run(self):
        signal.alarm(SECONDS + 30)  # whatever becomes of the test
        threads = [threading.Thread(target=self.again_and_again, daemon=True) for _ in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def again_and_again(self):
        while True:
            try:
                self.client()
            except (ConnectionResetError, BrokenPipeError):  # hung up on: the server's good right
                time.sleep(0.05)
            except (OSError, requests.RequestException):  # no answer, or another than it asked for
                time.sleep(0.05)
                continue
            with self.rounds.get_lock():
                self.rounds.value += 1

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()


class Memory:
    """Watches how much memory the containers use, by `docker stats`."""

    def __init__(self, containers):
        self.command = [DOCKER, "stats", "--format", "{{.MemUsage}}", *containers]

    def __enter__(self):
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read when all is over)
        self.process = subprocess.Popen(self.command, stdout=self.said)
        return self

    def __exit__(self, *_):
        self.process.kill()  # it takes no notice of SIGTERM
        self.process.wait()

    def peak(self):
        """Return the most (MiB) that one of them was seen to use."""
        self.said.seek(0)
        unit = {"B": 1 / 1024**2, "KiB": 1 / 1024, "MiB": 1, "GiB": 1024}
        return max(float(n) * unit[name] for n, name in re.findall(r"([\d.]+)([KMG]?i?B) / ", self.said.read()))


def connect(service):
    return socket.create_connection(("127.0.0.1", PORTS[service]), timeout=30)


def half_close(sock):
    """Say no more, and go on listening; whoever was hung up on hears that next."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def read_to_the_end(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


def idle(service):
    """Return a client that connects, says nothing, and comes back when it is shown the door."""

    def client():
        with connect(service) as sock:
            sock.settimeout(None)
            sock.recv(1)

    return client


def survives(app, usual, count, client, share=0.9, rounds=1):
    """Assert that mining keeps `share` of its rate, probes answer, nothing restarts and memory stays bounded.

    The abuse is one only if the clients were served or hung up on, at least `rounds` times in all.
    """
    containers = [only(app, service) for service in SERVICES]
    started = [inspect(container, "{{.State.StartedAt}}") for container in containers]
    with Abuse(count, client) as abuse, Memory(containers) as memory:
        time.sleep(1)  # until the clients are there
        slowest, since = 0, time.time()
        while time.time() - since < SECONDS:
            for name, port in PORTS.items():
                asked = time.time()
                answer = web.get(f"http://localhost:{port}/healthz", timeout=PATIENCE)
                slowest = max(slowest, time.time() - asked)
                assert (answer.status_code, answer.text) == (200, "ok\n"), name
            time.sleep(0.2)
        rate = len(mined(app, since)) / (time.time() - since)
    print(
        f"{rate:.2f} of {usual:.2f} hashes/s, at most {memory.peak():.0f} MiB, probes {1000 * slowest:.0f} ms, "
        f"{abuse.rounds.value} times"
    )
    assert abuse.rounds.value >= rounds
    assert memory.peak() < MEMORY
    assert slowest < PATIENCE
    assert rate >= share * usual - 1 / SECONDS  # the unit that is cut off
    assert [inspect(container, "{{.State.StartedAt}}") for container in containers] == started
    assert {inspect(container, "{{.State.Health.FailingStreak}}") for container in containers} == {"0"}
    return since


@pytest.mark.parametrize("service", PORTS)
def test_500_idle_connections_do_not_slow_mining(app, usual, service):
    survives(app, usual, 500, idle(service), rounds=500)


@pytest.mark.parametrize("service", PORTS)
def test_100_clients_that_send_a_byte_a_second_do_not_slow_mining(app, usual, service):
    turns = itertools.cycle([b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"])

    def client():
        with connect(service) as sock:
            sock.sendall(next(turns))
            for _ in range(1000):
                sock.sendall(b"x")
                time.sleep(1)

    survives(app, usual, 100, client)


REFUSED = {
    "headers-of-1-MB": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %990d\r\n" % (i, i) for i in range(1000)),
    "header-of-1-MB": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "line-of-1-MB": b"GET /" + b"1" * 1_000_000,
    "no-http": b"\x16\x03\x01\x02\x00\x01\x00\xff\r\n\r\n",
    "bad-length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "two-lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad-chunk": b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless-chunk-size": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 1_000_000,
    "half-a-body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf",
}
NOT_ALLOWED = ("bad-chunk", "endless-chunk-size", "half-a-body")  # where there is no POST, that is the first to say


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("service", PORTS)
def test_malformed_request_is_refused_and_the_service_goes_on(app, service, name):
    since, answer = time.time(), b""
    with connect(service) as sock:
        try:
            sock.sendall(REFUSED[name])
            half_close(sock)
            answer = read_to_the_end(sock)
        except (ConnectionResetError, BrokenPipeError):  # hung up on before it was done
            assert len(REFUSED[name]) > 900_000
    statuses = {int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)}
    assert statuses <= ({405, 400} if name in NOT_ALLOWED and service != "hasher" else {400, 414, 431})
    assert statuses or len(REFUSED[name]) > 900_000
    assert web.get(f"http://localhost:{PORTS[service]}/healthz", timeout=PATIENCE).text == "ok\n"
    assert "Traceback" not in logs(only(app, service), since)


@pytest.mark.parametrize("service", PORTS)
@pytest.mark.parametrize("kind", ["1-MB-of-headers", "malformed"])
def test_refused_requests_all_the_time_do_not_slow_mining(app, usual, service, kind):
    requests_ = itertools.cycle([REFUSED[name] for name in REFUSED if kind == "malformed" or name.endswith("1-MB")])

    def client():
        with connect(service) as sock:
            sock.sendall(next(requests_))
            half_close(sock)
            read_to_the_end(sock)
        time.sleep(0.1)

    survives(app, usual, 10, client, rounds=20 * SECONDS)


PIPELINE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 1000  # 35 kB: what it says waits in the sockets' buffers


@pytest.mark.parametrize("service", PORTS)
def test_pipelined_requests_are_all_answered_also_when_half_closed(app, service):
    with connect(service) as sock:
        sock.sendall(PIPELINE)
        half_close(sock)
        assert read_to_the_end(sock).count(b"HTTP/1.1 200 OK") == 1000


@pytest.mark.parametrize("service", PORTS)
def test_10_clients_that_pipeline_have_nobody_wait_long(app, usual, service):
    def client():
        with connect(service) as sock:
            sock.sendall(PIPELINE)
            half_close(sock)
            read_to_the_end(sock)

    survives(app, usual, 10, client, share=0.5)


@pytest.mark.parametrize("service", PORTS)
def test_10_clients_that_send_what_nobody_reads_have_nobody_wait_long(app, usual, service):
    def client():
        with connect(service) as sock:
            sock.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n")
            for _ in range(100):
                sock.sendall(bytes(1024**2))

    survives(app, usual, 10, client, share=0.5)


def test_50_clients_drawing_16_mib_cost_little_memory(app, usual):
    turns = itertools.count()

    def client():
        slow = next(turns) % 2  # so that all are under way at a time, while the others take it as fast as they can
        with requests.get(f"http://localhost:{PORTS['rng']}/16777216", stream=True, timeout=30) as answer:
            answer.raise_for_status()
            while answer.raw.read(200_000):
                time.sleep(0.1 * slow)

    survives(app, usual, 50, client, share=0.05)  # rng's queue is as long as there are clients


def test_20_posts_of_64_mib_cost_little_memory(app, usual):
    def client():
        data = (bytes(65536) for _ in range(1024))
        requests.post(f"http://localhost:{PORTS['hasher']}", data=data, timeout=30).raise_for_status()

    survives(app, usual, 20, client, share=0.5)


def test_200_clients_of_json_are_all_answered(app, usual):
    def client():
        requests.get(f"http://localhost:{PORTS['webui']}/json", timeout=5).raise_for_status()
        time.sleep(1)

    since = survives(app, usual, 200, client, share=0.5)
    answers = re.findall(r'"GET /json HTTP/1.1" (\d+)', logs(only(app, "webui"), since))
    assert set(answers) == {"200"}
    assert len(answers) >= 100 * SECONDS  # half of what they ask for at most: the clients need the machine, too


def test_after_all_that_nothing_is_lost_and_nothing_counted_twice(app):
    worker, by = only(app, "worker"), address(app)
    docker("stop", worker)
    batches = re.findall(r":(\d+) units of work done", logs(worker))
    counted = docker("exec", only(app, "redis"), "redis-cli", "get", "hashes")
    assert len(app.posts(by=by)) == sum(map(int, batches)) == int(counted) > 0
