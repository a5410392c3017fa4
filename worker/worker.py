"""worker: asks rng for bytes, hasher for their hash, and counts both in Redis. One thread mines, another one counts."""

import logging
import os
import queue
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import redis
import requests
import urllib3
from redis.backoff import NoBackoff
from redis.retry import Retry

HTTP_TIMEOUT = (3, 30)  # seconds to connect, and to wait in rng's queue
BACKLOG = 3600  # batches kept while Redis is away: an hour of them
HEARTBEAT = Path(tempfile.gettempdir(), "worker-heartbeat")  # touched in each round, for the liveness probe
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


def http_url(text):
    """Return `text` without a closing slash if it is an http address, or raise ValueError."""
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname or parts.port == 0 or parts.query or parts.fragment:
        raise ValueError
    return text.rstrip("/")


def connect(url):
    """Return a client of the Redis at `url`, or raise ValueError. It does not retry by itself: count() does."""
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


@dataclass
class Batch:
    """Units of work done and not yet counted: how many, in how many seconds, the coins among them, and until when."""

    seq: int = 1
    units: int = 0
    seconds: float = 0
    coins: dict = field(default_factory=dict)
    ended: float = 0


class Trouble:
    """Logs one line when something goes wrong or fails in another way, and one when it is over."""

    def __init__(self, what):
        self.what, self.cause, self.backoff = what, None, 0.1

    def begins(self, error):
        """Log `error` unless it is known, and return how long to wait (s): 0.1 to 2, doubled each time, with jitter."""
        while error.__context__:  # what requests and redis wrap is the short and telling part
            error = error.__context__
        cause = str(error) or type(error).__name__
        if cause != self.cause:
            log.warning("%s: %s, trying again", self.what, cause)
        wait = random.uniform(self.backoff / 2, self.backoff)
        self.cause, self.backoff = cause, min(self.backoff * 2, 2)
        return wait

    def ends(self):
        """Log that it is over, if it had begun."""
        if self.cause:
            log.warning("%s is back", self.what)
            self.cause, self.backoff = None, 0.1


def ask(service, request, size):
    """Return the body of a 200 answer of exactly `size` bytes; anything else raises OSError or urllib3's HTTPError."""
    with http.send(request, stream=True, timeout=HTTP_TIMEOUT) as response:
        body = response.raw.read(size + 1)
    if response.status_code != 200 or len(body) != size:
        raise OSError(f"{service} answered {response.status_code} with {len(body)} bytes, not 200 with {size}")
    return body


class Worker:
    """What the two threads share. A unit of work is in `batch`, then in `pending`, then in Redis, so never lost."""

    def __init__(self):
        self.name = secrets.token_hex(8)  # new for each process: its batches are numbered from 1
        self.batch, self.pending = Batch(), queue.SimpleQueue()
        self.done = self.counted = 0  # units of work
        self.stopping, self.hashing = threading.Event(), threading.Lock()

    def mine(self):
        """Do units of work until stopped, and hand over what is done: at once, then about once a second."""
        troubles = {name: Trouble(name) for name in ("rng", "hasher", "mining")}
        count_at = 0
        while not self.stopping.is_set():
            HEARTBEAT.touch()
            if self.pending.qsize() >= BACKLOG:
                self.stopping.wait(troubles["mining"].begins(OSError("backlog full until redis is back")))
                continue
            troubles["mining"].ends()
            service, started = "rng", time.monotonic()
            try:
                time.sleep(DELAY)
                data = ask("rng", DRAW, 32)
                troubles["rng"].ends()
                service = "hasher"
                with self.hashing:  # held from the post until its unit is in the batch; stop() takes it for good
                    self.add(data, started)
                    if self.batch.ended >= count_at:
                        self.hand_over()
                        count_at = time.monotonic() + 1
                troubles["hasher"].ends()
            except (OSError, urllib3.exceptions.HTTPError) as error:
                wait = troubles[service].begins(error)
                with self.hashing:
                    self.hand_over()
                self.stopping.wait(wait)

    def add(self, data, started):
        """Have hasher hash the 32 bytes `data` and add the unit of work begun at `started` (s) to the batch."""
        HASH.body = data  # 32 bytes like those it was prepared with, so its Content-Length is right
        digest = ask("hasher", HASH, 64).decode("latin-1")
        if set(digest) - set("0123456789abcdef"):
            raise OSError("hasher answered with 64 characters that are not a hash")
        self.done, batch = self.done + 1, self.batch
        batch.units, batch.ended = batch.units + 1, time.monotonic()
        batch.seconds += batch.ended - started
        log.debug("One unit of work: %s...", digest[:8])
        if digest.startswith("0"):
            batch.coins[digest] = data
            log.info("Coin found: %s...", digest[:8])

    def hand_over(self):
        """Put the batch, unless empty, into the queue of those to count, and open the next one."""
        if self.batch.units:
            batch, self.batch = self.batch, Batch(self.batch.seq + 1)
            self.pending.put(batch)

    def count(self):
        """Add the batches to Redis in their order, each until Redis says that it has it; None ends it."""
        trouble, ahead = Trouble("redis"), 1e12  # how far Redis' clock is ahead of ours (s), from its last answer
        for batch in iter(self.pending.get, None):
            coins = [part for coin in batch.coins.items() for part in coin]
            while True:
                sent = time.monotonic()
                age, by = sent - batch.ended, batch.ended + ahead
                try:
                    clock = db.eval(COUNT, 1, self.name, batch.seq, batch.units, batch.seconds, age, by, *coins)
                    ahead = float(clock) - sent
                    break
                except (OSError, redis.RedisError) as error:
                    wait = trouble.begins(error)
                    if self.stopping.wait(wait):
                        time.sleep(0.05)
            trouble.ends()
            self.counted += batch.units
            log.info("%d units of work done, updating hash counter", batch.units)

    def stop(self, counter):
        """Wait 0.5 s for a hash that was posted and 1 s for `counter` to count what is done; a draw is given up."""
        self.stopping.set()
        self.hashing.acquire(timeout=0.5)
        self.hand_over()
        self.pending.put(None)
        counter.join(1)
        if self.done != self.counted:
            log.error("%d units of work stay uncounted", self.done - self.counted)


def main():
    """Mine until SIGTERM or SIGINT."""
    logging.basicConfig()
    log.setLevel(logging.DEBUG if DEBUG else logging.INFO)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # for all threads: main waits for them below
    threading.excepthook = lambda bug: (threading.__excepthook__(bug), os.kill(os.getpid(), signal.SIGTERM))
    worker = Worker()
    counter = threading.Thread(target=worker.count, daemon=True)
    counter.start()
    threading.Thread(target=worker.mine, daemon=True).start()
    signal.sigwait(signals)
    worker.stop(counter)


if __name__ == "__main__":
    main()
