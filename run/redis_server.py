"""The Redis of `make run`: fakeredis, in memory, forgotten at the end."""

import os
import signal

from fakeredis import TcpFakeServer

# Workers count what they have finished when they are stopped, so Redis ends a second later.
signal.signal(signal.SIGTERM, lambda *_: signal.alarm(2))
signal.signal(signal.SIGINT, lambda *_: signal.alarm(2))
TcpFakeServer.allow_reuse_address = True
TcpFakeServer(("127.0.0.1", int(os.environ.get("REDIS_PORT", "8003")))).serve_forever()
