"""What worker asks of rng, hasher and redis; whatever goes wrong is Trouble."""

import socket
from contextlib import contextmanager
from pathlib import Path

import redis
import requests
import urllib3
from settings import HASHER_URL, REDIS, RNG_URL

TIMEOUT = (3, 30)  # seconds to connect, and to wait in rng's queue
COUNT = Path(__file__).with_name("count.lua").read_text()

# A Kubernetes Service spreads connections, not requests: kept open, a new rng replica would get no work.
# Each request is prepared once and sent by requests' adapter: no look-up of proxies, passwords and cookies each time.
http = requests.adapters.HTTPAdapter()
# A container that goes with its network or its node says no goodbye: while an answer is waited for, TCP asks each
# second whether the other side is there, and gives up after 4 s. (Not every system has these names.)
ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_USER_TIMEOUT", 4000))
    if hasattr(socket, name)
]
http.init_poolmanager(2, 1, socket_options=urllib3.connection.HTTPConnection.default_socket_options + ALIVE)
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
        with http.send(request, stream=True, timeout=TIMEOUT) as response:
            body = response.raw.read(size + 1)
        if response.status_code != 200 or len(body) != size:
            raise OSError(f"answered {response.status_code} with {len(body)} bytes, not 200 with {size}")
    return body


def draw():
    """Return 32 random bytes from rng, or raise Trouble."""
    return ask("rng", DRAW, 32)


def sha256(data):
    """Return the hash of 32 bytes from hasher, 64 hex digits, or raise Trouble."""
    HASH.body = data  # 32 bytes like those it was prepared with, so its Content-Length is right
    digest = ask("hasher", HASH, 64)
    if digest.strip(b"0123456789abcdef"):
        raise Trouble("hasher", "answered with 64 characters that are not a hash")
    return digest.decode()


def count(worker, *batch):
    """Have redis count a batch of `worker` (worker/count.lua), once however often; return its clock (s)."""
    with asking("redis"):
        return float(REDIS.eval(COUNT, 0, worker, *batch))
