"""What clients may do to the services while it mines. FULL=1 makes each abuse last a minute."""

import os
import socket
import threading
import time

import pytest
import requests
from processes import wait_until

SECONDS = 60 if os.environ.get("FULL") == "1" else 6
MEMORY = 150 * 1024  # KB: the most that a service may use


def memory(process):
    """Return the proportional set size (KB) of a process and its children."""
    with open(f"/proc/{process}/smaps_rollup") as rollup:
        size = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    with open(f"/proc/{process}/task/{process}/children") as children:
        return size + sum(memory(child) for child in children.read().split())


def processes_of(stack):
    """Return the process ids of each service: a restart would change them."""
    return {
        name: open(f"/proc/{it.pid}/task/{it.pid}/children").read() for name, it in stack.processes.items() if it.pid
    }


class Abuse:
    """Runs `client(stop)` in `count` threads until stopped; what it raises is the server's good right."""

    def __init__(self, count, client):
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=[client], daemon=True) for _ in range(count)]

    def run(self, client):
        while not self.over.is_set():
            try:
                client(self.over)
            except (OSError, requests.RequestException):
                self.over.wait(0.05)

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(30)


@pytest.fixture
def mining(stack):
    stack.start("redis", "rng", "hasher", "webui").ready().start("worker")
    wait_until(stack.hashes, 5, "it mines")
    return stack


def raw(stack, service, text, close=True):
    """Return a client that sends raw bytes in a connection and reads until its end."""

    def client(over):
        with socket.create_connection(("127.0.0.1", stack.ports[service]), timeout=5) as sock:
            for byte in [text] if close else [text[i : i + 1] for i in range(len(text))]:
                sock.sendall(byte)
                if not close and over.wait(1):
                    return
            while sock.recv(65536) and not over.is_set():
                pass

    return client


def idle(stack, service):
    def client(over):
        with socket.create_connection(("127.0.0.1", stack.ports[service]), timeout=5):
            over.wait()

    return client


def survives(stack, count, client, share=0.9):
    """Assert that mining keeps `share` of its rate, probes answer, nothing restarts and memory stays bounded."""
    before = stack.rate(5)
    processes, peak = processes_of(stack), 0
    with Abuse(count, client):
        time.sleep(1)  # until the clients are there
        served, start = stack.served(), time.monotonic()
        while time.monotonic() - start < SECONDS:
            for name in ("rng", "hasher", "webui"):
                assert requests.get(stack.url(name, "/healthz"), timeout=2).text == "ok\n"
                peak = max(peak, memory(stack.processes[name].pid))
            time.sleep(0.2)
        rate = (stack.served() - served) / (time.monotonic() - start)
    assert peak < MEMORY
    assert rate >= share * before - 1 / SECONDS  # the unit that is cut off
    assert processes_of(stack) == processes


@pytest.mark.parametrize("service", ["rng", "hasher", "webui"])
def test_idle_connections_do_not_slow_mining(mining, service):
    survives(mining, 500, idle(mining, service))


@pytest.mark.parametrize("service", ["rng", "hasher"])
def test_clients_that_send_a_byte_a_second_do_not_slow_mining(mining, service):
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
    survives(mining, 100, raw(mining, service, request, close=False))


MALFORMED = {
    "headers-of-1-MB": b"GET / HTTP/1.1\r\nHost: x\r\n"
    + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 990) for i in range(1000)),
    "one-line-of-1-MB": b"GET /" + b"1" * 1_000_000,
    "no-http": b"\x16\x03\x01\x02\x00\x01\x00\xff\r\n\r\n",
    "bad-length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "two-lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad-chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "pipelined": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
    "half-a-body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf",
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
def test_malformed_request_is_refused_without_traceback_and_the_service_goes_on(mining, request_):
    for service in ("rng", "hasher", "webui"):
        with socket.create_connection(("127.0.0.1", mining.ports[service]), timeout=5) as sock:
            try:
                sock.sendall(request_)
                sock.shutdown(socket.SHUT_WR)  # half-closed
                answer = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
            except OSError as error:
                answer = repr(error).encode()
        assert b" 500 " not in answer
        assert b"Traceback" not in answer
        assert requests.get(mining.url(service, "/healthz"), timeout=2).text == "ok\n"
        assert "Traceback" not in mining.log(service)


def test_malformed_requests_all_the_time_do_not_slow_mining(mining):
    survives(mining, 5, raw(mining, "rng", MALFORMED["no-http"] + b"\r\n"))


def test_50_clients_drawing_16_mb_cost_little_memory(mining):
    url = mining.url("rng", "/16777216")

    def client(over):
        with requests.get(url, stream=True, timeout=30) as answer:
            while not over.is_set() and answer.raw.read(200_000):  # so slowly that all 50 are under way at a time
                time.sleep(0.1)

    survives(mining, 50, client, share=0)


def test_20_posts_of_64_mib_cost_little_memory(mining):
    def client(over):
        def body():
            for _ in range(1024):
                if over.is_set():
                    return
                yield bytes(65536)

        requests.post(mining.url("hasher"), data=body(), timeout=30)

    survives(mining, 20, client, share=0)


def test_200_clients_of_json_are_served(mining):
    answers = []

    def client(over):
        answers.append(requests.get(mining.url("webui", "/json"), timeout=5).status_code)
        over.wait(1)

    survives(mining, 200, client, share=0.5)
    assert set(answers) == {200}
    assert len(answers) >= 100 * SECONDS  # half of what they ask for at most: the clients need the machine, too
