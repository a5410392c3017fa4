"""worker: gets bytes from rng and their hash from hasher, counts hashes and coins in Redis."""

import logging
import os
import re
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from http.client import HTTPConnection, HTTPException

import redis

HISTORY = 300  # seconds that Redis keeps the chart's data: a little more than the chart shows
HEADERS = {"Content-Type": "application/octet-stream"}


def url(name, default, login="", path="/?"):  # login, path: patterns of what else it may have
    """Return the URL in the environment variable `name`, or exit if it is not like `default`."""
    value = os.environ.get(name, default)
    host_port = r"([\w-]{1,63}\.)*[\w-]{1,63}(:(?P<port>\d{1,5}))?"
    found = re.fullmatch(default.split("//")[0] + f"//{login}{host_port}{path}", value, re.ASCII)
    if not found or int(found["port"] or 0) > 65535:
        sys.exit(f"{name} is {value!r}, but must be like {default}")
    return value.rstrip("/")


DELAY = os.environ.get("WORKER_DELAY", "0.1")  # seconds of sleep in each unit of work
if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", DELAY) or float(DELAY) > 30:
    sys.exit(f"WORKER_DELAY is {DELAY!r}, but must be 0 to 30 seconds, such as 0.1")
RNG = url("RNG_URL", "http://rng:80")
HASHER = url("HASHER_URL", "http://hasher:80")
REDIS_URL = url("REDIS_URL", "redis://redis:6379", login=r"([\w.~!$&*+,;=:%-]*@)?", path=r"(/\d*)?")
REDIS = REDIS_URL.split("@")[-1]  # without the password, for the log
db = redis.Redis.from_url(REDIS_URL, socket_timeout=1, socket_connect_timeout=1)
log = logging.getLogger("worker")


def ask(method, service, path, pattern, **options):
    """Return the body of a 200 that matches `pattern`, or raise ValueError."""
    try:
        with closing(HTTPConnection(service.removeprefix("http://"), timeout=3)) as connection:
            connection.request(method, path, **options)
            connection.sock.settimeout(30)  # seconds: the queue of 300 workers at one rng
            with connection.getresponse() as answer:
                content = answer.read(1000)  # valid answers are shorter
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(f"{service}{path}: {error}".encode("unicode_escape").decode()) from error
    if answer.status != 200 or answer.length or not re.fullmatch(pattern, content, re.DOTALL):
        raise ValueError(f"{service}{path}: {answer.status} with {len(content)} bytes")
    return content


def work():
    """Do one unit of work; return when it was finished (s) and its coin, {hash: bytes} or None."""
    time.sleep(float(DELAY))
    data = ask("GET", RNG, "/32", b".{32}")
    digest = ask("POST", HASHER, "/", b"[0-9a-f]{64}", body=data, headers=HEADERS).decode()
    log.debug("One unit of work: %s...", digest[:8])
    if digest.startswith("0"):
        log.info("Coin found: %s...", digest[:8])
    return time.monotonic(), {digest: data} if digest.startswith("0") else None


class Worker:
    """Does units of work and counts each exactly once in Redis."""

    def __init__(self):
        self.key = f"worker:{os.urandom(8).hex()}"  # in Redis: how many of its units are counted
        self.counted = 0  # units that Redis has confirmed
        self.finished = []  # what work() returned for each later unit
        self.count_at = 0  # when it may count again (s, time.monotonic)
        self.stopping = False

    def count(self):
        """Add to Redis what is not counted yet, or raise RedisError.

        The reply to an earlier attempt can get lost, so each one first reads how much is counted,
        and adds only the rest. WATCH aborts this one if an earlier one arrives after that.
        """
        with db.pipeline() as pipe:
            pipe.watch(self.key)
            new = self.finished[max(0, int(pipe.get(self.key) or 0) - self.counted) :]
            now, micros = pipe.time()  # the clock of Redis, as the clocks of nodes differ
            offset = now + micros / 1e6 - time.monotonic()  # from our clock to that of Redis
            pipe.multi()  # what follows is queued and runs as one transaction
            pipe.set(self.key, self.counted + len(self.finished), ex=86400)  # one day
            pipe.incrby("hashes", len(new))
            speed = Counter()  # {second: hashes}
            for moment, coin in new:
                second, part = divmod(moment + offset, 1)  # spread over the 1 s before, so that
                speed.update({int(second): part, int(second) - 1: 1 - part})  # the line is flat
                if coin:
                    pipe.hset("wallet", mapping=coin)
            for second in (each for each in speed if each > now - HISTORY):
                pipe.incrbyfloat(f"speed:{second}", speed[second])
                pipe.expire(f"speed:{second}", HISTORY)
            pipe.execute()

    def count_if_due(self):
        """Count at most once a second, and always when stopping; a failure is logged."""
        if self.finished and (self.stopping or time.monotonic() >= self.count_at):
            try:
                self.count()
                log.info("%d units of work done, updating hash counter", len(self.finished))
                self.counted, self.finished = self.counted + len(self.finished), []
            except redis.RedisError as error:
                log.warning("%s: %s; trying again", REDIS, str(error).rstrip("."))
            self.count_at = time.monotonic() + 1

    def mine(self):
        """Work until stopped, count what is finished, and retry what fails."""
        pause, stopping = 0.1, False
        executor = ThreadPoolExecutor(1)  # so that a silent service does not delay counting
        while not stopping:
            unit = executor.submit(work)
            while wait([unit], timeout=1).not_done:
                self.count_if_due()
            try:
                self.finished.append(unit.result())
                pause = 0.1
            except ValueError as error:
                log.warning("%s; trying again", error)
                time.sleep(pause)
                pause = min(2 * pause, 2)
            stopping = self.stopping  # read before counting, as a signal may come at any time
            self.count_if_due()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # what libraries log
    log.setLevel("DEBUG" if os.environ.get("DEBUG", "").lower().startswith("y") else "INFO")
    worker = Worker()
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, lambda *_: setattr(worker, "stopping", True))
    worker.mine()
    if worker.finished:
        sys.exit(f"{len(worker.finished)} units of work remain uncounted")
