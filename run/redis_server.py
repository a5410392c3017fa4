"""The Redis of `make run`: fakeredis, which keeps its data in memory only."""

import os
import signal

from fakeredis import TcpFakeServer

# Workers count what they have finished when they are stopped, so Redis stops a second later.
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: signal.alarm(1))
signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
TcpFakeServer.allow_reuse_address = True
TcpFakeServer(("127.0.0.1", int(os.environ.get("REDIS_PORT", "8003")))).serve_forever()
