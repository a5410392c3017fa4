"""The Redis of `make run`: fakeredis, which keeps its data in memory only."""

import os
import signal

from fakeredis import TcpFakeServer

# Redis stops 1.3 s after the others are told to: by then the workers have counted what they have
# finished. Otherwise they would report uncounted units.
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: signal.setitimer(signal.ITIMER_REAL, 1.3))
signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
TcpFakeServer.allow_reuse_address = True
TcpFakeServer(("127.0.0.1", int(os.environ.get("REDIS_PORT", "8003")))).serve_forever()
