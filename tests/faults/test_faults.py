"""Failures while mining, after which every unit is counted once. FULL=1 takes longer."""

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import requests
from support import wait_until
from support.engine import LABEL, docker, inspect, logs
from support.processes import Proxy, Stack, free_port

FULL = os.environ.get("FULL") == "1"
ROUNDS = 10 if FULL else 3


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path)
    yield stack
    stack.close()


@pytest.fixture
def real(tmp_path):
    """A stack with a real Redis, in a container that appends each write to its file."""
    port, command = free_port(), ["redis-server", "--appendonly", "yes", "--appendfsync", "always"]
    stack = Stack(tmp_path, REDIS_URL=f"redis://127.0.0.1:{port}")
    where = ("-p", f"127.0.0.1:{port}:6379", "--label", LABEL)
    name = docker("run", "-d", *where, "redis:8-alpine", *command)
    stack.redis = lambda *words: docker(*words, name)
    try:
        wait_until(stack.db.ping, 20, "redis answers")
        yield stack.start("rng", "hasher").ready()
    finally:
        stack.close()
        stack.redis("rm", "-f", "-v")


def mines(stack, rate, seconds=5):
    """Wait until hasher serves `rate` units/s, which must be within `seconds`."""

    def fast_enough():
        before = stack.served()
        time.sleep(1)
        return stack.served() - before >= rate

    wait_until(fast_enough, seconds, f"{rate} units/s")


def stop_workers(stack):
    for name in [name for name in stack.processes if name.startswith("worker")]:
        assert stack.stop(name)[0] == 0


def all_is_counted_once(stack):
    """Assert that hasher served, workers logged and Redis counted the same number of units."""
    stop_workers(stack)
    stack.stop("hasher")  # so its log is complete
    assert stack.served() == stack.logged() == stack.hashes() > 0
    assert not any("Traceback" in log.read_text() for log in stack.logs.glob("worker*.log"))


def test_mining_recovers_within_5_s_after_a_service_is_killed_and_restarted(real):
    workers = [f"worker.{i}" for i in range(5)]
    real.start("webui").ready().start(*workers)
    mines(real, 8, 10)
    for number in range(ROUNDS):
        for name in ("rng", "hasher", "webui", workers[number % 5]):
            real.stop(name, signal.SIGKILL)
            real.start(name)
            mines(real, 8)
        real.redis("kill")
        real.redis("start")
        mines(real, 8)
    stop_workers(real)
    in_flight = 5 * ROUNDS  # each worker's unit when hasher is killed: served, not logged
    assert real.logged() <= real.hashes() <= real.served() + in_flight
    assert real.served() - real.hashes() <= in_flight + 12 * ROUNDS  # a killed worker's last units


def test_no_unit_is_lost_while_redis_is_paused(real):
    real.start("worker")
    mines(real, 3, 10)
    real.redis("pause")
    before, seconds = real.served(), 30 if FULL else 5
    time.sleep(seconds)
    assert real.served() - before >= 3.2 / 3 * seconds  # a third of the rate
    real.redis("unpause")
    mines(real, 3)
    all_is_counted_once(real)
    assert real.lines(f":{real.ports['redis']}")


def test_no_unit_is_lost_when_redis_is_killed_and_restarted_with_its_file(real):
    real.start("worker")
    mines(real, 3, 10)
    for _ in range(ROUNDS):
        real.redis("kill")
        missed = len(real.lines("trying again"))
        wait_until(lambda n=missed: len(real.lines("trying again")) > n + 1, 8, "two failures")
        done = real.served()
        wait_until(lambda done=done: real.served() > done + 4, 5, "mining continues")
        real.redis("start")
        before = wait_until(real.hashes, 5, "redis answers")
        wait_until(lambda before=before: real.hashes() > before, 5, "it counts again")
    all_is_counted_once(real)


def test_thousands_of_units_wait_for_redis_in_little_memory_and_are_counted_at_once(real):
    for name in ("rng", "hasher"):
        real.stop(name)
        real.start(name, **{f"{name.upper()}_DELAY": "0"})
    real.ready().start("worker", WORKER_DELAY="0")
    wait_until(lambda: real.logged() > 500, 20, "it mines")
    real.redis("kill")
    wait_until(lambda: real.lines("trying again"), 5, "Redis is unreachable")
    status = Path(f"/proc/{real.processes['worker'].pid}/status")
    memory = lambda: int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024  # noqa: E731
    first, before = real.served(), memory()
    wait_until(lambda: real.served() > first + 3000, 60, "thousands of units are finished")
    units, grown = real.served() - first, memory() - before
    print(f"{units} units, {grown:.1f} MiB more than {before:.0f} MiB")
    day = 3.3 * 86400  # units: with `before`, they must fit in the 128 MiB of a pod, less a reserve
    assert grown < 1 + (110 - before) * units / day  # 1 MiB: what Python takes at once
    logged = real.logged()
    real.redis("start")
    wait_until(lambda: real.logged() > logged + units, 5, "all are counted")
    all_is_counted_once(real)


def test_lost_replies_of_redis_count_nothing_twice(real):
    proxy = Proxy(real.ports["redis"])
    real.start("worker", REDIS_URL=f"redis://127.0.0.1:{proxy.port}")
    for _ in range(ROUNDS):
        before = real.logged()
        wait_until(lambda before=before: real.logged() > before, 5, "a count")
        passed = []
        proxy.request = lambda data, sink, passed=passed: passed.append(b"EXEC" in data) or True
        proxy.reply = lambda data, sink, passed=passed: not any(passed)
        wait_until(lambda passed=passed: any(passed), 5, "a transaction whose reply is lost")
        time.sleep(2.5)  # new connections get no reply either
        proxy.request = proxy.reply = None
    mines(real, 3)
    all_is_counted_once(real)


def test_first_attempt_that_reaches_redis_after_its_retry_counts_nothing_twice(real):
    proxy, held, replies = Proxy(real.ports["redis"]), [], []

    def request(data, sink):
        if b"EXEC" not in data or held:
            return True
        held.append((sink, data))
        proxy.kept.append(sink)
        return False

    real.start("worker", REDIS_URL=f"redis://127.0.0.1:{proxy.port}")
    wait_until(real.logged, 5, "the first unit is counted")
    before = real.logged()
    proxy.request = request
    wait_until(lambda: held and real.logged() > before, 10, "the retry is counted")
    stop_workers(real)
    proxy.reply = lambda data, _: replies.append(data) or True
    server, data = held[0]
    server.sendall(data)
    wait_until(lambda: replies, 5, "Redis has answered the first attempt")
    all_is_counted_once(real)


def test_killed_worker_never_overcounts(real):
    for number in range(ROUNDS):
        real.start(f"worker.{number}")
        mines(real, 3, 10)
        before = real.hashes()
        wait_until(lambda before=before: real.hashes() > before, 5, "a count")
        real.stop(f"worker.{number}", signal.SIGKILL)
        wait_until(lambda: real.logged() <= real.hashes() <= real.served(), 2, "none too many")
    assert real.served() - real.hashes() <= 5 * ROUNDS


@pytest.mark.parametrize(
    "missing", ["rng", "hasher", "redis", "hasher rng redis", "redis rng hasher"]
)
def test_worker_waits_for_dependencies_that_are_missing_at_start(stack, missing):
    missing = missing.split()
    stack.start("worker", *{"rng", "hasher", "redis"} - set(missing))
    wait_until(lambda: stack.lines("trying again"), 5, "an attempt fails")
    for name in missing:  # one after the other
        time.sleep(3 / len(missing))
        stack.start(name)
    wait_until(stack.hashes, 4, "the first hash is counted")
    mines(stack, 3)
    all_is_counted_once(stack)


@pytest.mark.parametrize("name", ["rng", "hasher"])
def test_request_to_a_silent_service_times_out_after_30_s(stack, name):
    stack.start("redis", "rng", "hasher").ready()
    proxy, silent = Proxy(stack.ports[name]), threading.Event()
    stack.start("worker", **{f"{name.upper()}_URL": f"http://127.0.0.1:{proxy.port}"})
    mines(stack, 3, 10)
    proxy.answer = lambda client: silent.wait(45)
    start = time.monotonic()
    (line,) = wait_until(lambda: stack.lines(f":{proxy.port}"), 33, "the timeout")
    assert "timed out" in line
    assert time.monotonic() - start > 29
    proxy.answer = None
    silent.set()
    mines(stack, 3)
    all_is_counted_once(stack)


def test_mining_recovers_when_a_host_name_resolves_again(stack, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost rng.test\n")
    stack.start("redis", "rng", "hasher").ready()
    url = f"http://rng.test:{stack.ports['rng']}"
    mount = f"mount --bind {hosts} /etc/hosts"
    stack.start("worker", before=mount, RNG_URL=url, RES_OPTIONS="timeout:1 attempts:1")
    mines(stack, 3, 10)
    hosts.write_text("127.0.0.1 localhost\n")
    wait_until(lambda: stack.lines("rng.test"), 5, "the worker logs the name")
    time.sleep(5)
    hosts.write_text("127.0.0.1 localhost rng.test\n")
    mines(stack, 3)
    all_is_counted_once(stack)


def test_webui_answers_503_within_2_5_s_when_the_name_server_is_silent(stack, tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.99\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.99", 53))
        stack.start(
            "webui",
            before=f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf",
            REDIS_URL="redis://redis:6379",
            RES_OPTIONS="timeout:1 attempts:2",  # as in the image
        ).ready()
        start = time.monotonic()
        assert requests.get(stack.url("webui", "/json"), timeout=20).status_code == 503
        assert time.monotonic() - start < 2.5


def test_every_worker_finds_rng_at_its_new_address(built, start_image):
    built.down()
    built.up(worker=5)
    (rng,), workers = built.containers("rng"), built.containers("worker")
    network = inspect(rng, "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}")
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    began, before = time.time(), inspect(rng, address)
    docker("network", "disconnect", network, rng)
    for it in workers:
        wait_until(lambda it=it: "rng:80" in logs(it, began), 33, "every worker logs the failure")
    other = start_image("--network", network, "redis:8-alpine")  # takes the address
    docker("network", "connect", "--alias", "rng", network, rng)
    back = time.time()
    assert inspect(rng, address) != before
    for it in workers:
        wait_until(lambda it=it: "units of work done" in logs(it, back + 1), 5, "it mines again")
    docker("network", "disconnect", network, other)
    built.down()
