"""hasher: the SHA-256 of whatever is posted to it."""

import hashlib
import os
import re
import socket
import sys
import time

from flask import Flask, Response, abort, request
from werkzeug.exceptions import HTTPException

DELAY = os.environ.get("HASHER_DELAY", "0.1")  # seconds that a hash takes
if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", DELAY) or float(DELAY) > 30:
    sys.exit(f"HASHER_DELAY is {DELAY!r}, but must be 0 to 30 seconds, such as 0.1")

app = Flask(__name__, static_folder=None)
app.config["MAX_CONTENT_LENGTH"] = 1024**2  # bytes; a longer body gets a 413


@app.get("/")
def index():
    """Return the name of the container."""
    return Response(f"HASHER running on {socket.gethostname()}\n", mimetype="text/plain")


@app.post("/")
def hash_body():
    """Return the SHA-256 of the raw body as 64 lower-case hex digits."""
    if "Transfer-Encoding" in request.headers:
        abort(411, "Send the body with a Content-Length, not in chunks.")
    body = request.get_data()
    if len(body) < (request.content_length or 0):  # gunicorn does not report an early close
        abort(400, "The body is shorter than its Content-Length.")
    time.sleep(float(DELAY))
    return Response(hashlib.sha256(body).hexdigest(), mimetype="text/plain")


@app.get("/healthz")
def healthz():
    """Return ok."""
    return Response("ok\n", mimetype="text/plain")


@app.errorhandler(HTTPException)
def error_line(error):
    """Return an HTTP error as one line of text instead of a page."""
    response = error.get_response()
    response.data, response.mimetype = f"{error.code} {error.description}\n", "text/plain"
    return response
