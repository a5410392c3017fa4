"""How gunicorn serves webui: one process, with a greenlet for each connection."""

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
workers, worker_class = 1, "gevent"  # one process is enough; an idle client costs a greenlet
forwarded_allow_ips = ""  # X-Forwarded headers are not used: the check whom to trust costs 2 % CPU
keepalive = 0  # a connection per request: closing it discards an unread body
preload_app = True  # a bad setting stops gunicorn instead of restarting its worker forever
graceful_timeout = 1  # second to finish the requests in progress when stopped
limit_request_fields = 64  # each up to 8 kB; parsing time grows with the square of their size
accesslog, logger_class = "-", AccessLog  # to the container's output
control_socket_disable = True  # its socket would need a writable file system
