"""How gunicorn serves webui: two processes, a greenlet a connection, so that idle and slow clients cost little."""

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from contextlib import suppress  # noqa: E402

from gunicorn.glogging import Logger  # noqa: E402


def number(name, default, highest):
    """Return the environment variable `name` as a whole number from 1 to `highest`, or end gunicorn with one line."""
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= highest):
        sys.exit(f"{name} is {text!r}, but must be a whole number from 1 to {highest}")
    return int(text)


class AccessLog(Logger):
    """The access log without the probes that would fill it, printed: a request costs less than with logging."""

    def access(self, resp, req, environ, request_time):
        if environ.get("PATH_INFO") != "/healthz":
            request = f"{req.method} {req.uri} {environ['SERVER_PROTOCOL']}".replace("\\", r"\\").replace('"', r"\"")
            print(f'{environ["REMOTE_ADDR"]} - - {self.now()} "{request}" {resp.status[:3]} {resp.sent}', flush=True)


bind = f"0.0.0.0:{number('PORT', '80', 65535)}"
worker_class = "gevent"
workers = 2
preload_app = True  # a wrong setting ends gunicorn with its one line, and memory is shared
graceful_timeout = 1  # second for requests in progress when stopped; workers retry the rest
limit_request_fields = 64  # up to 8 kB are read for each before it refuses, at a cost that grows with the square
logger_class = AccessLog
accesslog = "-"
control_socket_disable = True
if os.path.isdir("/dev/shm"):
    worker_tmp_dir = "/dev/shm"  # the one place that can be written when the root is read-only


def pre_request(worker, request):
    """Give other connections a turn: one that sends its requests all at once would keep the process to itself."""
    time.sleep(0)


def post_request(worker, request, environ, response):
    """Read what is left of a body that nobody wanted, in turns too: gunicorn does it in one go, however long it is."""
    with suppress(Exception):  # broken off or malformed: gunicorn ends the connection
        while not request.should_close() and request.body.read(64 * 1024):
            time.sleep(0)


# In an image started as root: bind port 80 as root, serve as the user that the Dockerfile names.
if os.geteuid() == 0 and "SERVE_AS_UID" in os.environ:
    user = group = number("SERVE_AS_UID", "", 65534)
    initgroups = True

    def post_fork(server, worker):
        os.setgid(group)  # initgroups alone leaves the main group as it was: root's
