"""hasher: the SHA-256 of whatever is posted to it."""

import hashlib
import os
import socket
import sys
import time

from flask import Flask, Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, HTTPException


def seconds(name, default):
    """Return the setting `name` in seconds (0 to 30, a worker waits no longer); anything else ends the process."""
    value = os.environ.get(name, default)
    try:
        if 0 <= (number := float(value)) <= 30:
            return number
    except ValueError:
        pass
    sys.exit(f"{name} is {value!r}, but must be a number of seconds from 0 to 30")


DELAY = seconds("HASHER_DELAY", "0.1")  # contract: a hash takes 0.1 s
PIECE = 8 * 1024  # bytes of a body read and hashed at a time, so that memory stays small and others wait little
app = Flask(__name__, static_folder=None)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024**2  # bytes; a longer body, chunked or not, is 413


@app.get("/")
def index():
    """Return which container answers, at once."""
    return Response(f"HASHER running on {socket.gethostname()}\n", mimetype="text/plain")


@app.post("/")
def hash_body():
    """Return the lower-case hex SHA-256 of the raw body, whatever its content type; read in pieces, never whole."""
    if request.content_length is None:
        request.max_content_length += 1  # the stream of a chunked body ends with an error at its limit, not behind it
    digest, size = hashlib.sha256(), 0
    try:
        while size != request.content_length and (piece := request.stream.read(PIECE)):
            digest.update(piece)
            size += len(piece)
            time.sleep(0)  # a turn for the others, who would wait for the last piece of a client that sends fast
    except ParseException as error:  # gunicorn's word on a chunk that is none
        raise BadRequest(str(error)) from error
    if size < (request.content_length or 0):
        raise BadRequest(f"the body ended after {size} of {request.content_length} bytes")
    time.sleep(DELAY)
    return Response(digest.hexdigest(), mimetype="text/plain")


@app.get("/healthz")
def healthz():
    """Return ok at once."""
    return Response("ok\n", mimetype="text/plain")


@app.errorhandler(HTTPException)
def error_line(error):
    """Return any HTTP error as one line of text, with the headers that belong to it (Allow of a 405)."""
    response = error.get_response()
    response.data, response.mimetype = f"{error.code} {error.name}: {error.description}\n", "text/plain"
    return response
