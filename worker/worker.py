"""worker: gets bytes from rng and their hash from hasher, counts hashes and coins in Redis."""

import logging
import os
import re
import signal
import sys
import time
from collections import Counter

import redis
import urllib3

HISTORY = 300  # seconds that Redis keeps the chart's data: a little more than the chart shows
TIMEOUT = urllib3.Timeout(connect=3, read=30)  # seconds: 300 workers at one rng wait 30 s
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
http = urllib3.PoolManager(timeout=TIMEOUT, retries=False)
log = logging.getLogger("worker")


def ask(method, address, pattern, **options):
    """Return the body of the answer, a 200 that matches `pattern`, or raise ValueError."""
    try:
        with http.request(method, address, preload_content=False, **options) as answer:
            content = answer.read(1000)  # longer ones do not match
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        while error.__context__:  # urllib3 wraps `Connection refused` in errors of its own
            error = error.__context__
        raise ValueError(f"{address}: {error}") from error
    if answer.status != 200 or not re.fullmatch(pattern, content, re.DOTALL):
        raise ValueError(f"{address}: {answer.status} with {len(content)} bytes")
    return content


def speed(finished):
    """Return {second: hashes} for hashes finished at these times (s)."""
    hashes = Counter()
    # Each is spread over the second before it was finished, so a steady worker draws a flat line.
    for second, part in (divmod(moment, 1) for moment in finished):
        hashes[int(second)] += part
        hashes[int(second) - 1] += 1 - part
    return hashes


class Worker:
    """Does units of work and counts each exactly once in Redis."""

    def __init__(self):
        self.key = f"worker:{os.urandom(8).hex()}"  # in Redis: how many of its units are counted
        self.counted = 0  # units that Redis has confirmed
        self.finished = []  # when each later unit was finished (s, time.monotonic)
        self.coins = {}  # found in those, {hash: bytes}
        self.stopping = False

    def work(self):
        """Do one unit of work, or raise ValueError."""
        time.sleep(float(DELAY))
        data = ask("GET", f"{RNG}/32", b".{32}")
        digest = ask("POST", f"{HASHER}/", b"[0-9a-f]{64}", body=data, headers=HEADERS).decode()
        self.finished.append(time.monotonic())
        log.debug("One unit of work: %s...", digest[:8])
        if digest.startswith("0"):
            log.info("Coin found: %s...", digest[:8])
            self.coins[digest] = data

    def count(self):
        """Add to Redis what is not counted yet, or raise RedisError.

        A reply can get lost, so each attempt first reads how much is counted: retries are
        idempotent. If an earlier attempt arrives late, WATCH aborts this one, which is retried.
        """
        with db.pipeline() as pipe:
            pipe.watch(self.key)
            before = int(pipe.get(self.key) or 0)  # less than self.counted if Redis lost its data
            new = self.finished[max(0, before - self.counted) :]  # not all, if a reply was lost
            now, micros = pipe.time()  # the clock of Redis, as the clocks of nodes differ
            offset = now + micros / 1e6 - time.monotonic()  # from our clock to that of Redis
            pipe.multi()  # what follows is queued and runs as one transaction
            pipe.set(self.key, self.counted + len(self.finished), ex=86400)  # one day
            pipe.incrby("hashes", len(new))
            if self.coins:
                pipe.hset("wallet", mapping=self.coins)
            for second, hashes in speed(moment + offset for moment in new).items():
                if second > now - HISTORY:
                    pipe.incrbyfloat(f"speed:{second}", hashes)
                    pipe.expire(f"speed:{second}", HISTORY)
            pipe.execute()
        log.info("%d units of work done, updating hash counter", len(self.finished))
        self.counted, self.finished, self.coins = self.counted + len(self.finished), [], {}

    def mine(self):
        """Work until stopped, count about once a second and at the end, and retry what fails."""
        count_at, pause, stopping = 0, 0.1, False
        while not stopping:
            try:
                self.work()
                pause = 0.1
            except ValueError as error:
                log.warning("%s; trying again", error)
                time.sleep(pause)
                pause = min(2 * pause, 2)
            stopping = self.stopping  # read once, as a signal may set it at any time
            if self.finished and (stopping or time.monotonic() >= count_at):
                try:
                    self.count()
                except redis.RedisError as error:
                    log.warning("%s: %s; trying again", REDIS, str(error).rstrip("."))
                count_at = time.monotonic() + 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # what libraries log
    log.setLevel("DEBUG" if os.environ.get("DEBUG", "").lower().startswith("y") else "INFO")
    worker = Worker()
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, lambda *_: setattr(worker, "stopping", True))
    worker.mine()
    if worker.finished:
        sys.exit(f"{len(worker.finished)} units of work remain uncounted")
