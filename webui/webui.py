"""webui: the page with the chart, and the numbers behind it."""

import math
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import gevent
import redis
from flask import Flask, jsonify, redirect, request, send_from_directory
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore
from redis.backoff import NoBackoff
from redis.retry import Retry
from werkzeug.exceptions import BadRequest, HTTPException

HISTORY = 250  # seconds that the chart shows (contract: the original's chart)
NEVER = 1e99  # the second from which on to tell no speeds
FOLDER = Path(__file__).parent
STATE = FOLDER.joinpath("state.lua").read_text()
URL = os.environ.get("REDIS_URL", "redis://redis:6379")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
app = Flask(__name__, static_folder="files", static_url_path="")

HOST = r"(([\w-]{1,63}\.)*[\w-]{1,63}|\[[\da-f:.]+\])(:(?P<port>\d{1,5}))?"  # a name or an address, and a port
found = re.fullmatch(rf"redis://([!-.0-?A-~]*@)?{HOST}(/\d*)?", URL, re.ASCII)  # with a password, a database
if not found or not 1 <= int(found["port"] or 80) <= 65535:
    sys.exit(f"REDIS_URL is {URL!r}, but must be an address like redis://HOST:PORT")
# One more try on a new connection: the old one may have died with a restarted Redis.
retry = Retry(NoBackoff(), 1)
db = redis.Redis.from_url(URL, decode_responses=True, socket_timeout=1, socket_connect_timeout=1, retry=retry)


@contextmanager
def deadline(seconds):
    """Raise redis.TimeoutError after `seconds` in all, name resolution and a second try included."""
    try:
        with gevent.Timeout(seconds):  # no Exception, so that redis does not take it for a reason to try again
            yield
    except gevent.Timeout:
        raise redis.TimeoutError(f"no answer within {seconds} s") from None


turns = WeakValueDictionary()  # by `since`: who reads Redis now; forgotten with the last one who waits
to_begin = {}  # by `since`: the read that comes next


def read(since):
    """Return what STATE tells from second `since` on, or raise redis.RedisError, within 1.5 s.

    Requests for the same that come while it is read share the next read, so no answer is older than its request.
    """
    if since in to_begin:
        return to_begin[since].get()
    to_begin[since] = answer = AsyncResult()
    turn = turns.setdefault(since, BoundedSemaphore())
    try:
        with deadline(1.5), turn:
            del to_begin[since]
            answer.set(db.eval(STATE, 0, since, HISTORY))
    except BaseException as error:  # for all who wait
        if to_begin.get(since) is answer:
            del to_begin[since]
        answer.set_exception(error)
        raise
    return answer.get()


@app.get("/")
def index():
    """Send the browser to the page."""
    return redirect("/index.html")


@app.get("/uplot/<path:name>")
def uplot(name):
    """Return a file of the chart library, which npm installs outside of files/."""
    return send_from_directory(FOLDER / "node_modules/uplot/dist", name)


@app.get("/json")
def state():
    """Return the size of the wallet, the counter as Redis gives it (null before the first hash) and the time (s).

    With `?since=SECONDS` also the speed of each whole second from then on, at most HISTORY of them, by Redis' clock:
    `start` (s), `speed` (hashes/s, null while nothing was mined) and `clock` (s). Redis away is 503.
    """
    since = request.args.get("since", type=float)
    if since is None and "since" in request.args or since is not None and not math.isfinite(since):
        raise BadRequest("since must be a number of seconds")
    coins, hashes, clock, start, speed = read(NEVER if since is None else since)
    answer = {"coins": coins, "hashes": hashes, "now": time.time()}
    if since is not None:
        speed = [None if value is None else round(float(value), 3) for value in speed]
        answer |= {"clock": float(clock), "start": start, "speed": speed}
    return answer


@app.get("/healthz")
def healthz():
    """Return ok at once, also when Redis is away: restarting webui would not bring it back."""
    return "ok\n", {"Content-Type": "text/plain"}


@app.errorhandler(redis.RedisError)
def redis_away(error):
    """Return 503 and the reason."""
    return jsonify(error=f"Redis is away: {error}"), 503


@app.errorhandler(HTTPException)
def error_line(error):
    """Return any HTTP error as one line: JSON for /json, text for the rest."""
    response = error.get_response()
    line = f"{error.code} {error.name}: {error.description}"
    if request.path == "/json":
        response.data, response.mimetype = jsonify(error=line).data, "application/json"
    else:
        response.data, response.mimetype = line + "\n", "text/plain"
    return response


@app.after_request
def headers(response):
    """Let the page load nothing from anywhere else (CSP), and nobody frame it or guess its types."""
    response.headers.extend(HEADERS)
    response.headers["Cache-Control"] = "no-store" if request.path == "/json" else "no-cache"
    return response
