"""How gunicorn serves rng: one process, with a greenlet for each connection."""

import os
import socket
import sys

from gevent import monkey
from gunicorn.glogging import Logger

monkey.patch_all()  # before preload_app imports the application


class AccessLog(Logger):
    """The access log without the health probes, which would flood it."""

    def access(self, resp, req, environ, request_time):
        if environ.get("PATH_INFO") != "/healthz":
            super().access(resp, req, environ, request_time)


PORT = os.environ.get("PORT", "80")
if PORT not in map(str, range(1, 65536)):
    sys.exit(f"PORT is {PORT!r}, but must be 1 to 65535")
bind = f"[::]:{PORT}" if socket.has_dualstack_ipv6() else f"0.0.0.0:{PORT}"
worker_class = "gevent"  # an idle client costs only a greenlet
workers = 1  # WEB_CONCURRENCY is ignored, as the lock needs one process
keepalive = 0  # a connection per request: Kubernetes balances connections, not requests
preload_app = True  # a bad setting stops gunicorn instead of restarting its worker forever
graceful_timeout = 1  # second to finish requests when stopped; the worker repeats the others
limit_request_fields = 32  # each up to 8 kB; parsing time grows with the square of their size
accesslog, logger_class = "-", AccessLog  # to the container's output
control_socket_disable = True  # its socket would need a writable file system
