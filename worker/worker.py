"""worker: asks rng for bytes and hasher for their hash, and counts hashes and coins in Redis."""

import logging
import os
import random
import secrets
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import services
from services import Trouble
from settings import DEBUG, DELAY

BACKLOG = 50_000  # coins kept while Redis is away (10 MB): three days of them, or some 45 minutes without the delays
HEARTBEAT = Path(tempfile.gettempdir(), "worker-heartbeat")  # touched for each unit, for the liveness probe
log = logging.getLogger("worker")


@dataclass
class Batch:
    """Units of work done and not yet counted: how many, in how many seconds, the coins among them, and until when."""

    number: int = 1
    units: int = 0
    seconds: float = 0
    last: float = 0  # seconds that the last unit took
    ended: float = 0
    coins: list = field(default_factory=list)  # hash, bytes, hash, bytes...


class Troubles(dict):
    """What does not do as it should, by service: each cause is logged once, and that it is over after 2 s without."""

    def begin(self, service, cause):
        """Log `cause` unless it was already, or five others were."""
        causes, _ = self.get(service, (set(), 0))
        if cause not in causes and len(causes) < 5:
            log.warning("%s: %s, trying again", service, cause)
            causes.add(cause)
        self[service] = causes, time.monotonic()

    def end(self):
        """Log which services are back: what comes and goes with each unit of work is one trouble, not many."""
        for service, (_, last) in list(self.items()):
            if time.monotonic() - last > 2:
                log.warning("%s is back", service)
                del self[service]


class Worker:
    """One thread mines, another counts. A unit of work is in the batch that grows, then in the one that is counted."""

    def __init__(self):
        self.name = secrets.token_hex(8)  # new for each process: its batches are numbered from 1
        self.batch, self.lock = Batch(), threading.Lock()
        self.done = self.counted = 0  # units of work
        self.busy = 0  # CPU time (s) that mining has taken up to its last rest
        self.ahead = 1e12  # how far Redis' clock is ahead of ours (s), from its last answer
        self.stopping, self.mined, self.over = threading.Event(), threading.Event(), threading.Event()

    def persist(self, action, troubles, end):
        """Do `action` until it works, with 0.1 to 2 s in between; return False if it fails after `end`, else True."""
        backoff = 0.1
        while True:
            try:
                action()
                if not self.stopping.is_set():  # work() may then have asked nobody
                    troubles.end()
                return True
            except Trouble as error:
                troubles.begin(*error.args)
                if self.stopping.wait(random.uniform(backoff / 2, backoff)):
                    time.sleep(0.05)
                backoff = min(backoff * 2, 2)
                if end.is_set():
                    return False

    def mine(self):
        """Do units of work until stopped."""
        troubles = Troubles()
        while not self.stopping.is_set():
            self.persist(self.work, troubles, self.stopping)

    def work(self):
        """Do one unit of work."""
        started = time.monotonic()
        HEARTBEAT.touch()
        if len(self.batch.coins) >= 2 * BACKLOG:
            raise Trouble("mining", "backlog full until redis is back")
        # DELAY stands for work, so the CPU time that this thread spent since its last rest is taken off it.
        time.sleep(max(0, self.busy + DELAY - time.thread_time()))
        self.busy = time.thread_time()
        data = services.draw()
        if not self.stopping.is_set():
            self.add(services.sha256(data), data, started)

    def add(self, digest, data, started):
        """Add the unit of work that was begun at `started` (s) and made `digest` out of `data` to the batch."""
        log.debug("One unit of work: %s...", digest[:8])
        with self.lock:
            batch, self.done = self.batch, self.done + 1
            batch.units, batch.ended = batch.units + 1, time.monotonic()
            batch.last = batch.ended - started
            batch.seconds += batch.last
            if digest.startswith("0"):
                batch.coins += digest, data
                log.info("Coin found: %s...", digest[:8])

    def count(self):
        """Add what is done to Redis: the first unit at once, then about once a second, at the end what is left."""
        troubles, mined = Troubles(), False
        while not mined:
            mined = self.mined.wait(1 if self.counted else 0.02)
            with self.lock:
                batch, self.batch = self.batch, Batch(self.batch.number + 1)
            if batch.units:
                if not self.persist(lambda batch=batch: self.send(batch), troubles, self.over):
                    break
                self.counted += batch.units
                log.info("%d units of work done, updating hash counter", batch.units)

    def send(self, batch):
        """Add `batch` to Redis, which does it once, however often it is sent."""
        sent = time.monotonic()
        age, ended = sent - batch.ended, batch.ended + self.ahead
        clock = services.count(
            self.name, batch.number, batch.units, batch.seconds, batch.last, age, ended, *batch.coins
        )
        self.ahead = clock - sent

    def run(self, signals):
        """Mine until one of `signals`. Then a draw is given up, a hash that was posted has 0.5 s, and counting goes on
        for 1 s, or for up to 4 s while redis lets it wait but answers."""
        miner, counter = (threading.Thread(target=each, daemon=True) for each in (self.mine, self.count))
        miner.start()
        counter.start()
        signal.sigwait(signals)
        self.stopping.set()
        miner.join(0.5)
        self.mined.set()
        counter.join(1)
        self.over.set()
        counter.join(3)
        if self.done != self.counted:
            log.error("%d units of work stay uncounted", self.done - self.counted)


if __name__ == "__main__":
    logging.basicConfig()
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what is wrong with an answer, worker says itself, and once
    log.setLevel(logging.DEBUG if DEBUG else logging.INFO)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # for all threads: run() waits for them
    threading.excepthook = lambda bug: (threading.__excepthook__(bug), os.kill(os.getpid(), signal.SIGTERM))
    Worker().run(signals)
