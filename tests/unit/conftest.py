"""A fake Redis in this process that speaks the real protocol."""

import threading

import pytest
import redis
from fakeredis import TcpFakeServer
from support.processes import free_port


@pytest.fixture
def redis_port():
    server = TcpFakeServer(("127.0.0.1", port := free_port()))
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield port
    server.shutdown()
    server.server_close()


@pytest.fixture
def db(redis_port):
    return redis.Redis(port=redis_port, socket_timeout=5)
