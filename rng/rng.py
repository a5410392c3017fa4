"""rng: random bytes over HTTP, one request at a time."""

import os
import re
import socket
import sys
import time
from threading import Lock

from flask import Flask, Response, abort
from werkzeug.exceptions import HTTPException

DELAY = os.environ.get("RNG_DELAY", "0.1")  # seconds that a draw takes
if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", DELAY) or float(DELAY) > 30:
    sys.exit(f"RNG_DELAY is {DELAY!r}, but must be 0 to 30 seconds, such as 0.1")
MAX_BYTES = 1024**2  # the most that one request may draw

app = Flask(__name__, static_folder=None)

# The workshop's bottleneck: `/` and `/N` wait for all earlier requests. It is a lock, because a
# single-threaded server would also be blocked by one idle connection.
one_at_a_time = Lock()


@app.get("/")
def index():
    """Return the name of the container; `httping` shows how long the queue is."""
    with one_at_a_time:
        return Response(f"RNG running on {socket.gethostname()}\n", mimetype="text/plain")


@app.get("/<int:count>")
def draw(count):
    """Return `count` random bytes from the operating system, or 400 above MAX_BYTES."""
    if count > MAX_BYTES:
        abort(400, f"At most {MAX_BYTES} bytes can be drawn at once.")
    with one_at_a_time:
        time.sleep(float(DELAY))
    time.sleep(0)  # yields (gevent): the next draw begins before this answer is sent
    return Response(os.urandom(count), mimetype="application/octet-stream")


@app.get("/healthz")
def healthz():
    """Return ok at once, however long the queue is: busy is not broken."""
    return Response("ok\n", mimetype="text/plain")


@app.errorhandler(HTTPException)
def error_line(error):
    """Return an HTTP error as one line of text instead of a page."""
    response = error.get_response()
    response.data, response.mimetype = f"{error.code} {error.description}\n", "text/plain"
    return response
