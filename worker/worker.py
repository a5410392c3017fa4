"""worker: asks rng for bytes and hasher for their hash, and counts hashes and coins in Redis."""

import logging
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
import requests
import urllib3
from redis.backoff import NoBackoff
from redis.retry import Retry

HTTP_TIMEOUT = (3, 30)  # seconds to connect, and to wait in rng's queue
BACKLOG = 50_000  # coins kept while Redis is away (10 MB): three days of them, or 20 minutes without the delays
HEARTBEAT = Path(tempfile.gettempdir(), "worker-heartbeat")  # touched for each unit, for the liveness probe
HOST = r"(([\w-]{1,63}\.)*[\w-]{1,63}|\[[\da-f:.]+\])(:(?P<port>\d{1,5}))?"  # a name or an address, and a port
log = logging.getLogger("worker")


def setting(name, default, check, expected):
    """Return the environment variable `name`, passed through `check`; a ValueError ends the process with one line."""
    value = os.environ.get(name, default)
    try:
        return check(value)
    except ValueError:
        sys.exit(f"{name} is {value!r}, but must be {expected}")


def seconds(text):
    """Return `text` as seconds, or raise ValueError."""
    if not 0 <= float(text) <= 30:
        raise ValueError
    return float(text)


def expect(url, pattern):
    """Raise ValueError unless `url` is like `pattern` from end to end, with a port that there can be."""
    found = re.fullmatch(pattern, url, re.ASCII)
    if not found or not 1 <= int(found["port"] or 80) <= 65535:
        raise ValueError


def http_url(text):
    """Return `text` without a closing slash if it is an http address, or raise ValueError."""
    expect(text, f"http://{HOST}/?")
    return requests.Request("GET", text).prepare().url.rstrip("/")  # InvalidURL is a ValueError


def connect(url):
    """Return a client of the Redis at `url`, or raise ValueError. It does not retry: persist() does."""
    expect(url, rf"redis://([!-.0-?A-~]*@)?{HOST}(/\d*)?")  # with a password, a database
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


DELAY = setting("WORKER_DELAY", "0.1", seconds, "a number of seconds from 0 to 30")  # contract: 0.1 s a unit
RNG_URL = setting("RNG_URL", "http://rng", http_url, "an address like http://HOST:PORT")
HASHER_URL = setting("HASHER_URL", "http://hasher", http_url, "an address like http://HOST:PORT")
db = setting("REDIS_URL", "redis://redis:6379", connect, "an address like redis://HOST:PORT")
DEBUG = os.environ.get("DEBUG", "").lower().startswith("y")
COUNT = Path(__file__).with_name("count.lua").read_text()

# A Kubernetes Service spreads connections, not requests: kept open, a new rng replica would get no work.
# Each request is prepared once and sent by requests' adapter: no look-up of proxies, passwords and cookies each time.
http = requests.adapters.HTTPAdapter()
CLOSE = {"Connection": "close"}
DRAW = requests.Request("GET", f"{RNG_URL}/32", CLOSE).prepare()
HASH = requests.Request(
    "POST", f"{HASHER_URL}/", CLOSE | {"Content-Type": "application/octet-stream"}, data=bytes(32)
).prepare()


class Trouble(Exception):
    """What is needed does not do as it should: its name, and why."""


@contextmanager
def asking(service):
    """Raise Trouble for whatever error comes from the block that asks `service`."""
    try:
        yield
    except (OSError, urllib3.exceptions.HTTPError, redis.RedisError) as error:
        while error.__context__:  # what requests and redis wrap is the short and telling part
            error = error.__context__
        raise Trouble(service, str(error) or type(error).__name__) from None


def ask(service, request, size):
    """Return the body of a 200 answer of exactly `size` bytes; anything else raises Trouble."""
    with asking(service):
        with http.send(request, stream=True, timeout=HTTP_TIMEOUT) as response:
            body = response.raw.read(size + 1)
        if response.status_code != 200 or len(body) != size:
            raise OSError(f"answered {response.status_code} with {len(body)} bytes, not 200 with {size}")
    return body


@dataclass
class Batch:
    """Units of work done and not yet counted: how many, in how many seconds, the coins among them, and until when."""

    number: int = 1
    units: int = 0
    seconds: float = 0
    coins: list = field(default_factory=list)  # hash, bytes, hash, bytes...
    ended: float = 0


class Worker:
    """One thread mines, another counts. A unit of work is in the batch that grows, then in the one that is counted."""

    def __init__(self):
        self.name = secrets.token_hex(8)  # new for each process: its batches are numbered from 1
        self.batch, self.lock = Batch(), threading.Lock()
        self.done = self.counted = 0  # units of work
        self.ahead = 1e12  # how far Redis' clock is ahead of ours (s), from its last answer
        self.stopping, self.mined = threading.Event(), threading.Event()

    def persist(self, action):
        """Do `action` until it works, with 0.1 to 2 s in between; log each new trouble once, and its end."""
        troubles, backoff = {}, 0.1
        while True:
            try:
                action()
                break
            except Trouble as error:
                service, cause = error.args
                if troubles.get(service) != cause:
                    log.warning("%s: %s, trying again", service, cause)
                troubles[service] = cause
                if self.stopping.wait(random.uniform(backoff / 2, backoff)):
                    time.sleep(0.05)
                backoff = min(backoff * 2, 2)
        for service in troubles:
            log.warning("%s is back", service)

    def mine(self):
        """Do units of work until stopped."""
        while not self.stopping.is_set():
            self.persist(self.work)

    def work(self):
        """Do one unit of work."""
        started = time.monotonic()
        HEARTBEAT.touch()
        if len(self.batch.coins) >= 2 * BACKLOG:
            raise Trouble("mining", "backlog full until redis is back")
        time.sleep(max(0, started + DELAY - time.monotonic()))
        data = ask("rng", DRAW, 32)
        if self.stopping.is_set():
            return
        HASH.body = data  # 32 bytes like those it was prepared with, so its Content-Length is right
        digest = ask("hasher", HASH, 64)
        if digest.strip(b"0123456789abcdef"):
            raise Trouble("hasher", "answered with 64 characters that are not a hash")
        self.add(digest.decode(), data, started)

    def add(self, digest, data, started):
        """Add the unit of work that was begun at `started` (s) and made `digest` out of `data` to the batch."""
        log.debug("One unit of work: %s...", digest[:8])
        with self.lock:
            batch = self.batch
            batch.units, batch.ended, self.done = batch.units + 1, time.monotonic(), self.done + 1
            batch.seconds += batch.ended - started
            if digest.startswith("0"):
                batch.coins += digest, data
                log.info("Coin found: %s...", digest[:8])

    def count(self):
        """Add what is done to Redis: the first unit at once, then about once a second, at the end what is left."""
        mined = False
        while not mined:
            mined = self.mined.wait(1 if self.counted else 0.02)
            with self.lock:
                batch, self.batch = self.batch, Batch(self.batch.number + 1)
            if batch.units:
                self.persist(lambda batch=batch: self.send(batch))
                self.counted += batch.units
                log.info("%d units of work done, updating hash counter", batch.units)

    def send(self, batch):
        """Add `batch` to Redis, which does it once, however often it is sent."""
        sent = time.monotonic()
        numbers = batch.number, batch.units, batch.seconds, sent - batch.ended, batch.ended + self.ahead
        with asking("redis"):
            clock = db.eval(COUNT, 1, self.name, *numbers, *batch.coins)
        self.ahead = float(clock) - sent

    def run(self, signals):
        """Mine until one of `signals`. Then a draw is given up, a hash that was posted has 0.5 s, counting 1 s."""
        miner, counter = (threading.Thread(target=each, daemon=True) for each in (self.mine, self.count))
        miner.start()
        counter.start()
        signal.sigwait(signals)
        self.stopping.set()
        miner.join(0.5)
        self.mined.set()
        counter.join(1)
        if self.done != self.counted:
            log.error("%d units of work stay uncounted", self.done - self.counted)


if __name__ == "__main__":
    logging.basicConfig()
    log.setLevel(logging.DEBUG if DEBUG else logging.INFO)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # for all threads: run() waits for them
    threading.excepthook = lambda bug: (threading.__excepthook__(bug), os.kill(os.getpid(), signal.SIGTERM))
    Worker().run(signals)
