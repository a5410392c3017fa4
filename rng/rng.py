"""rng: random bytes over HTTP, one request at a time."""

import math
import os
import socket
import sys
import time
from threading import Lock

from flask import Flask, Response
from werkzeug.exceptions import BadRequest, HTTPException

MAX_BYTES = 16 * 1024**2  # the most that one request may draw
CHUNK = 64 * 1024  # bytes drawn and written at a time, so that memory stays small


def seconds(name, default):
    """Return the setting `name` in seconds (0 to 30, a worker waits no longer); anything else ends the process."""
    value = os.environ.get(name, default)
    try:
        if 0 <= (number := float(value)) <= 30:
            return number
    except ValueError:
        pass
    sys.exit(f"{name} is {value!r}, but must be a number of seconds from 0 to 30")


DELAY = seconds("RNG_DELAY", "0.1")  # contract: a draw takes 0.1 s
LATE = 0.05  # seconds of waking up late that the next draw makes up for, at most
app = Flask(__name__, static_folder=None)

# The workshop's bottleneck: `/` and `/N` are served one at a time, in the order they came, as if there were only one
# random generator. It is a rule of the application and not a server with one thread, which any idle connection stops.
one_at_a_time = Lock()
free_at = 0.0  # when the draw in progress, or the last one, is due to be over (s, time.monotonic)


@app.get("/")
def index():
    """Return which container answers; waits behind the draws in progress, which is what `httping` shows."""
    with one_at_a_time:
        return Response(f"RNG running on {socket.gethostname()}\n", mimetype="text/plain")


@app.get("/<int:count>")
def draw(count):
    """Return `count` random bytes from the operating system, at most MAX_BYTES, or else 400."""
    global free_at
    if count > MAX_BYTES:
        raise BadRequest(f"at most {MAX_BYTES} bytes can be drawn at once")
    arrived = time.monotonic()
    with one_at_a_time:  # A draw that had to wait begins when the one before was due: waking up late does not add up.
        free_at = max(arrived, free_at, time.monotonic() - LATE) + DELAY
        time.sleep(max(0, free_at - time.monotonic()))
    if count <= CHUNK:
        return Response(os.urandom(count), mimetype="application/octet-stream")
    # Written outside the rule: a client that reads slowly holds up nobody.
    chunks = (os.urandom(min(CHUNK, count - CHUNK * i)) for i in range(math.ceil(count / CHUNK)))
    return Response(chunks, mimetype="application/octet-stream", headers={"Content-Length": str(count)})


@app.get("/healthz")
def healthz():
    """Return ok at once, however long the queue is: busy is not broken."""
    return Response("ok\n", mimetype="text/plain")


@app.errorhandler(HTTPException)
def error_line(error):
    """Return any HTTP error as one line of text, with the headers that belong to it (Allow of a 405)."""
    response = error.get_response()
    response.data, response.mimetype = f"{error.code} {error.name}: {error.description}\n", "text/plain"
    return response
