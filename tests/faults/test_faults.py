"""What may break while it mines, and the equation that holds afterwards. FULL=1 takes the long times."""

import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
import redis
import requests
from support import wait_until
from support.engine import docker, inspect, logs
from support.processes import LINES, ROOT, Stack, free_port

FULL = os.environ.get("FULL") == "1"
ROUNDS = 10 if FULL else 3
DOCKER = "/usr/bin/docker"


class Proxy:
    """A TCP proxy to `port`. `request` and `reply` take what is on its way there and back: None lets it through."""

    def __init__(self, port):
        self.target, self.request, self.reply, self.answer = port, None, None, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=[client], daemon=True).start()

    def serve(self, client):
        if self.answer is not None:  # in place of the service
            client.recv(65536)
            self.answer(client)
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self.target))
        for source, sink, name in ((client, server, "request"), (server, client, "reply")):
            threading.Thread(target=self.pump, args=[source, sink, name], daemon=True).start()

    def pump(self, source, sink, name):
        try:
            while data := source.recv(65536):
                if (meddle := getattr(self, name)) is None or meddle(data):
                    sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                sock.close()


def logged(stack):
    """Return the units of work in the batches that the workers logged."""
    logs = [log.read_text() for log in stack.logs.glob("worker*.log")]
    return sum(int(units) for log in logs for units in re.findall(r":(\d+) units of work done", log))


def mines(stack, rate, seconds=5):
    """Wait until hasher serves `rate` units/s, no longer than the 5 seconds in which the application recovers."""

    def fast_enough():
        before = stack.served()
        time.sleep(1)
        return stack.served() - before >= rate

    wait_until(fast_enough, seconds, f"{rate} units/s")


def stop_workers(stack):
    for name in [name for name in stack.processes if name.startswith("worker")]:
        assert stack.stop(name)[0] == 0


def equal(stack):
    """Assert that what hasher served, what the workers logged and what Redis counted is the same."""
    stop_workers(stack)
    stack.stop("hasher")  # which first ends what it works on: its log is complete
    assert stack.served() == logged(stack) == stack.hashes() > 0


def lines(stack, text, log="worker"):
    return [line for line in stack.log(log).splitlines() if text in line]


@pytest.fixture
def real(tmp_path):
    """A stack on a real Redis, in a container that appends each write to its file."""
    port, name = free_port(), f"dockercoins-faults-{os.getpid()}"
    subprocess.run(
        [DOCKER, "run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:6379", "redis:8-alpine",
         "redis-server", "--appendonly", "yes", "--appendfsync", "always"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    stack = Stack(tmp_path, REDIS_URL=f"redis://127.0.0.1:{port}")
    stack.db, stack.ports["redis"] = redis.Redis(port=port, socket_timeout=5), port
    stack.docker = lambda *words: subprocess.run([DOCKER, *words, name], check=True, capture_output=True, timeout=60)
    try:
        wait_until(stack.db.ping, 20, "redis answers")
        yield stack
    finally:
        stack.close()
        stack.docker("rm", "-f", "-v")


def test_every_service_killed_and_started_again_in_turn(real):
    workers = [f"worker.{i}" for i in range(5)]
    real.start("rng", "hasher", "webui").ready().start(*workers)
    mines(real, 8, 10)
    for turn in range(ROUNDS):
        for name in ("rng", "hasher", "webui", workers[turn % 5]):
            real.stop(name, signal.SIGKILL)
            real.start(name)
            mines(real, 8)
        real.docker("kill", "-s", "KILL")
        real.docker("start")
        mines(real, 8)
    stop_workers(real)
    in_flight = 5 * ROUNDS  # one unit a worker at each kill of hasher; a killed worker loses a batch at the most
    assert logged(real) <= real.hashes() <= real.served() + in_flight  # what it served when killed, it did not log
    assert real.served() - real.hashes() <= in_flight + 12 * ROUNDS


def test_redis_paused_stops_no_mining_and_loses_nothing(real):
    real.start("rng", "hasher").ready().start("worker")
    mines(real, 3, 10)
    real.docker("kill", "-s", "STOP")
    before, start = real.served(), time.monotonic()
    wait_until(lambda: real.served() - before >= (30 if FULL else 15), 11 if FULL else 6, "mining goes on")
    assert time.monotonic() - start > 4
    real.docker("kill", "-s", "CONT")
    wait_until(lambda: lines(real, "redis is back"), 5, "the worker says that redis is back")
    equal(real)
    assert len(lines(real, "redis: ")) == 1


def test_worker_stopped_while_redis_is_paused_counts_everything_if_it_answers_within_2_s(real):
    real.start("rng", "hasher").ready().start("worker")
    mines(real, 3, 10)
    real.docker("kill", "-s", "STOP")
    threading.Timer(1.8, real.docker, ["kill", "-s", "CONT"]).start()
    done = real.served()
    wait_until(lambda: real.served() > done, 5, "a unit is done that is not counted")
    equal(real)
    assert not lines(real, "uncounted")


def test_redis_restarted_with_its_file_loses_nothing(real):
    real.start("rng", "hasher").ready().start("worker")
    mines(real, 3, 10)
    for turn in range(ROUNDS):
        real.docker("kill", "-s", "KILL")
        wait_until(lambda turn=turn: len(lines(real, "redis: ")) > turn, 5, "the worker says what happens")
        done = real.served()
        wait_until(lambda done=done: real.served() > done + 4, 5, "mining goes on")
        real.docker("start")
        before = wait_until(real.hashes, 5, "redis is back")
        wait_until(lambda before=before: real.hashes() > before, 5, "counting goes on")
        wait_until(lambda turn=turn: len(lines(real, "redis is back")) > turn, 5, "the worker says that it is over")
    equal(real)


def test_lost_replies_count_nothing_twice(real):
    stack = real.start("rng", "hasher").ready()
    proxy = Proxy(stack.ports["redis"])
    stack.start("worker", REDIS_URL=f"redis://127.0.0.1:{proxy.port}")
    for _ in range(ROUNDS):
        before = stack.hashes()
        wait_until(lambda before=before: stack.hashes() > before, 5, "counting goes on")
        proxy.reply = lambda data: False
        before = stack.hashes()
        wait_until(lambda before=before: stack.hashes() > before, 5, "a batch is applied whose reply is lost")
        time.sleep(2.5)  # nor is there a reply on a new connection
        proxy.reply = None
    mines(stack, 3)
    wait_until(lambda: stack.served() - logged(stack) <= 4, 5, "the worker knows what was counted")
    equal(stack)


def test_first_attempt_that_arrives_after_its_retry_counts_nothing(real):
    stack = real.start("rng", "hasher").ready()
    proxy, held = Proxy(stack.ports["redis"]), []

    def hold(data):
        if b"EVAL" not in data:
            return True
        held.append(data)
        return len(held) > 1  # the first attempt stays on its way

    stack.start("worker", REDIS_URL=f"redis://127.0.0.1:{proxy.port}")
    wait_until(stack.hashes, 5, "the first batch is counted")
    proxy.request = hold
    wait_until(lambda: len(held) > 2, 10, "the retry is applied")
    stop_workers(stack)
    counted = stack.hashes()
    with socket.create_connection(("127.0.0.1", stack.ports["redis"])) as late:
        late.sendall(held[0])
        late.settimeout(5)
        assert late.recv(100)[:1] in (b"+", b"$")  # the time: an answer, and no error
    assert stack.hashes() == counted
    equal(stack)


def answer(status, body, length=None, header="Connection: close"):
    head = f"HTTP/1.1 {status} x\r\nContent-Length: {length or len(body)}\r\n{header}\r\n\r\n"
    return lambda client: client.sendall(head.encode() + body)


@pytest.mark.parametrize(
    ("service", "bad"),
    [
        ("rng", answer(500, b"x" * 32)),
        ("rng", answer(200, b"x" * 16, 32)),
        ("rng", answer(200, b"x" * 31)),
        ("rng", answer(500, b"x" * 32, header="no header at all")),
        ("rng", None),
        ("hasher", answer(403, b"0" * 64)),
        ("hasher", answer(200, b"")),
        ("hasher", answer(200, b"0" * 63 + b"g")),
    ],
    ids=[
        "rng-500",
        "rng-half-a-body",
        "rng-31-bytes",
        "rng-odd-header",
        "rng-silent",
        "hasher-403",
        "hasher-empty",
        "hasher-not-hex",
    ],
)
def test_wrong_answer_is_no_unit_of_work_and_is_logged_once(stack, service, bad):
    stack.start("redis", "rng", "hasher").ready()
    proxy = Proxy(stack.ports[service])
    stack.start("worker", **{f"{service.upper()}_PORT": str(proxy.port)})
    mines(stack, 3, 10)
    healed = threading.Event()
    silence = 45 if FULL else 3  # seconds until it hangs up; a worker gives up after 30
    proxy.answer = bad or (lambda client: healed.wait(silence) and answer(200, b"x" * 32)(client))
    wait_until(lambda: lines(stack, f"{service}: "), 40, "the worker says what happens")
    wait_until(lambda: stack.served() == stack.hashes(), 5, "what was done is counted")
    done = stack.hashes()
    time.sleep(2)  # more tries
    assert stack.hashes() == done
    proxy.answer = None
    healed.set()
    mines(stack, 3)
    wait_until(lambda: lines(stack, f"{service} is back"), 5, "the worker says that it is over")
    assert len(lines(stack, f"{service}: ")) == len(lines(stack, f"{service} is back")) == 1
    assert not lines(stack, "Traceback")
    equal(stack)


def test_names_that_do_not_resolve_for_a_while(stack, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost rng.test\n")
    stack.start("redis", "rng", "hasher").ready()
    line = (
        f"mount --bind {hosts} /etc/hosts && REDIS_URL=redis://127.0.0.1:{stack.ports['redis']} "
        f"RNG_URL=http://rng.test:{stack.ports['rng']} HASHER_URL={stack.url('hasher', '')} "
        "RES_OPTIONS='timeout:1 attempts:1' exec python worker/worker.py"
    )
    with open(stack.logs / "worker.log", "ab") as log:
        stack.processes["worker"] = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", line], cwd=ROOT,
            env=stack.env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    mines(stack, 3, 10)
    hosts.write_text("127.0.0.1 localhost\n")
    wait_until(lambda: lines(stack, "rng: "), 5, "the worker says what happens")
    time.sleep(5)
    hosts.write_text("127.0.0.1 localhost rng.test\n")
    mines(stack, 3)
    wait_until(lambda: lines(stack, "rng is back"), 5, "the worker says that it is over")
    assert len(lines(stack, "rng: ")) == len(lines(stack, "rng is back")) == 1
    equal(stack)


@pytest.fixture
def app(built):
    built.down()
    yield built
    built.down()


def test_rng_that_lost_its_network_and_comes_back_with_another_address_is_found_by_every_worker(app, start_image):
    app.up(worker=5)  # most of them wait for rng at any time
    (rng,), workers = app.containers("rng"), app.containers("worker")
    network = inspect(rng, "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}")
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    began, before = time.time(), inspect(rng, address)
    docker("network", "disconnect", network, rng)
    for worker in workers:
        wait_until(lambda it=worker: "rng: [Errno" in logs(it, began), 7, "every worker says what happens")
    start_image("--network", network, "redis:8-alpine")  # takes the address
    docker("network", "connect", "--alias", "rng", network, rng)
    back = time.time()
    assert inspect(rng, address) != before
    for worker in workers:
        wait_until(lambda it=worker: "units of work done" in logs(it, back + 1), 5, "every worker mines again")
    for worker in workers:
        wait_until(lambda it=worker: "rng is back" in logs(it, back), 5, "every worker says that it is over")
        assert logs(worker, began).count("rng: ") <= 2  # no answer, then no such name


@pytest.mark.parametrize("order", [("worker", "hasher", "rng", "redis"), ("worker", "redis", "rng", "hasher")])
def test_every_dependency_missing_at_start_is_waited_for(stack, order):
    for name in order:
        stack.start(name)
        time.sleep(1)
    wait_until(stack.hashes, 4, "the first hash is counted")
    mines(stack, 3)
    equal(stack)


def test_hash_that_hasher_works_on_when_the_worker_is_stopped_is_counted(stack):
    stack.start("redis", "rng", "hasher", HASHER_DELAY="0.3").ready()
    proxy, posted = Proxy(stack.ports["hasher"]), threading.Event()
    stack.start("worker", HASHER_PORT=str(proxy.port))
    wait_until(stack.hashes, 5, "it mines")
    proxy.request = lambda data: posted.set() or True
    assert posted.wait(5)
    equal(stack)


def test_killed_worker_counts_none_too_many(stack):
    stack.start("redis", "rng", "hasher").ready()
    for turn in range(ROUNDS):
        stack.start(f"worker.{turn}")
        mines(stack, 3, 10)
        before = stack.hashes()
        wait_until(lambda before=before: stack.hashes() > before, 5, "a batch is counted")
        stack.stop(f"worker.{turn}", signal.SIGKILL)  # right after it, when a unit counted too early would show
    wait_until(lambda: logged(stack) <= stack.hashes() <= stack.served(), 2, "logged <= counter <= served")
    assert stack.served() - stack.hashes() <= 5 * ROUNDS


def test_full_backlog_is_counted_at_once_in_less_memory_than_a_pod_has(real):
    """Days without Redis, mined at once: the worker's limit, and that Redis takes it."""
    script = """
import os, resource, time, worker
w = worker.Worker()
for i in range(worker.BACKLOG):
    w.batch.coins += f'0{i:063x}', os.urandom(32)
w.batch.units, w.batch.seconds, w.batch.ended = 16 * worker.BACKLOG, 3600, time.monotonic()
w.mined.set()
w.count()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    env = real.env | {"PYTHONPATH": "worker"}
    done = subprocess.run(["python", "-c", script], env=env, check=True, timeout=60, stdout=subprocess.PIPE)
    assert real.hashes() == 16 * real.db.hlen("wallet") == 800_000
    assert int(done.stdout) < 110  # MiB; the pod's limit is 128


def test_name_resolution_that_hangs_is_503_within_2_s(stack, tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.99\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.99", 53))
        line = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && {LINES['webui']}"
        with open(stack.logs / "webui.log", "ab") as log:
            stack.processes["webui"] = subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", line], cwd=ROOT,
                env=stack.env | {"REDIS_URL": "redis://redis:6379"}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        stack.ready()
        start = time.monotonic()
        assert requests.get(stack.url("webui", "/json"), timeout=20).status_code == 503
        assert time.monotonic() - start < 2
