"""The settings of worker: environment variables, checked at start. A bad one ends the process with one line."""

import os
import re
import sys

import redis
import requests
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST = r"(([\w-]{1,63}\.)*[\w-]{1,63}|\[[\da-f:.]+\])(:(?P<port>\d{1,5}))?"  # a name or an address, and a port


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
    """Return a client of the Redis at `url`, or raise ValueError. It does not retry: worker does."""
    expect(url, rf"redis://([!-.0-?A-~]*@)?{HOST}(/\d*)?")  # with a password, a database
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


DELAY = setting("WORKER_DELAY", "0.1", seconds, "a number of seconds from 0 to 30")  # contract: 0.1 s a unit
RNG_URL = setting("RNG_URL", "http://rng", http_url, "an address like http://HOST:PORT")
HASHER_URL = setting("HASHER_URL", "http://hasher", http_url, "an address like http://HOST:PORT")
REDIS = setting("REDIS_URL", "redis://redis:6379", connect, "an address like redis://HOST:PORT")
DEBUG = os.environ.get("DEBUG", "").lower().startswith("y")
