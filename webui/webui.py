"""webui: the page with the chart, and the numbers behind it."""

import math
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import gevent
import redis
from flask import Flask, jsonify, redirect, request, send_from_directory
from redis.backoff import NoBackoff
from redis.retry import Retry
from werkzeug.exceptions import BadRequest, HTTPException

HISTORY = 250  # seconds that the chart shows (contract: the original's chart)
NEVER = 1e99  # the second from which on to tell no speeds
FOLDER = Path(__file__).parent
STATE = FOLDER.joinpath("state.lua").read_text()
URL = os.environ.get("REDIS_URL", "redis://redis:6379")
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
    with deadline(1.5):
        coins, hashes, clock, start, speed = db.eval(STATE, 0, NEVER if since is None else since, HISTORY)
    state = {"coins": coins, "hashes": hashes, "now": time.time()}
    if since is not None:
        speed = [None if value is None else round(float(value), 3) for value in speed]
        state |= {"clock": float(clock), "start": start, "speed": speed}
    return state


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
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store" if request.path == "/json" else "no-cache"
    return response
