"""webui: the page with the chart, and the numbers behind it."""

import json
import os
import re
import sys
from functools import lru_cache

import redis
from flask import Flask, Response, jsonify, redirect
from werkzeug.exceptions import HTTPException

HISTORY = 250  # seconds that the chart shows, as in the original
SETTLE = 2.6  # seconds until a second is complete: a unit is spread over 1 and counted within 1.6

app = Flask(__name__, static_folder="files", static_url_path="")
REDIS_URL = os.environ.get("REDIS_URL", "redis://redis:6379")
LOGIN_HOST_PORT = r"([\w.~!$&*+,;=:%-]*@)?([\w-]{1,63}\.)*[\w-]{1,63}(:(?P<port>\d{1,5}))?"
found = re.fullmatch(rf"redis://{LOGIN_HOST_PORT}(/\d*)?", REDIS_URL, re.ASCII)
if not found or int(found["port"] or 0) > 65535:
    sys.exit(f"REDIS_URL is {REDIS_URL!r}, but must be like redis://redis:6379")
TIMEOUTS = {"socket_timeout": 1, "socket_connect_timeout": 1}  # seconds
db = redis.Redis.from_url(REDIS_URL, decode_responses=True, max_connections=1000, **TIMEOUTS)


@app.get("/")
def index():
    """Redirect to the page by a relative URL, which also works behind a path prefix."""
    return redirect("index.html")


@app.get("/json")
def numbers():
    """Return the number of coins, the counter (a string or null), and Redis' time (s)."""
    pipe = db.pipeline(transaction=False)
    coins, hashes, (seconds, micros) = pipe.hlen("wallet").get("hashes").time().execute()
    return {"coins": coins, "hashes": hashes, "now": seconds + micros / 1e6}


@app.get("/speed")
def numbers_and_speed():
    """Return the numbers of /json and the hashes of each of the HISTORY seconds from `start` on."""
    current = numbers()
    end = int(current["now"] - SETTLE)
    # Joined as text: encoding 250 numbers for each page would add 10 % to webui's CPU time.
    fields = json.dumps(current | {"start": end - HISTORY}).removesuffix("}")
    return Response(fields + ', "speed": ' + speed(end) + "}\n", mimetype="application/json")


@lru_cache(maxsize=1)
def speed(end):
    """Return the hashes of the HISTORY seconds before `end` as JSON, read once for all pages."""
    hashes = db.mget(f"speed:{second}" for second in range(end - HISTORY, end))
    return json.dumps([round(float(each or 0), 2) for each in hashes])


@app.get("/healthz")
def healthz():
    """Return ok even if Redis is unreachable: restarting webui would not help."""
    return Response("ok\n", mimetype="text/plain")


@app.after_request
def security_headers(response):
    """Restrict the page to what webui serves; other sites may embed it."""
    own = "; ".join(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect"))
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
    response.headers["Content-Security-Policy"] = policy
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@app.errorhandler(redis.RedisError)
def redis_unreachable(error):
    """Return 503 and the reason."""
    return jsonify(error=f"Redis is unreachable: {str(error).rstrip('.')}"), 503


@app.errorhandler(HTTPException)
def error_line(error):
    """Return an HTTP error as one line of text instead of a page."""
    response = error.get_response()
    response.data, response.mimetype = f"{error.code} {error.description}\n", "text/plain"
    return response
