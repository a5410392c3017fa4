"""Whatever a request is, no route answers with a 500; whatever a setting is, no process ends with a traceback."""

import os
import runpy
import socket
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import fakeredis
import pytest
from gevent import monkey
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hasher
import rng
import webui

ROOT = Path(__file__).parent.parent.parent
SERVICES = {"rng": rng, "hasher": hasher, "webui": webui}
segment = st.text(st.characters(codec="utf-8"), max_size=20) | st.integers(-5, 2**70).map(str) | st.just("..")
path = st.lists(segment, max_size=3).map(lambda parts: "/" + "/".join(parts)) | st.sampled_from(["/json", "/healthz"])
method = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
headers = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "Host", "Range", "If-None-Match", "If-Modified-Since", "Content-Length", "Accept"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    max_size=3,
)
query = st.text(max_size=20) | st.floats().map(str) | st.integers(-(10**400), 10**400).map(str)


@pytest.mark.parametrize("name", SERVICES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=path, method=method, headers=headers, body=st.binary(max_size=100), query=query)
def test_no_request_is_a_500(monkeypatch, name, path, method, headers, body, query):
    monkeypatch.setattr(rng, "DELAY", 0)
    monkeypatch.setattr(hasher, "DELAY", 0)
    monkeypatch.setattr(webui, "db", fakeredis.FakeRedis(decode_responses=True))
    client = SERVICES[name].app.test_client()
    answer = client.open(
        method=method,
        headers=headers,
        data=body,
        query_string={"since": query},
        environ_overrides={"PATH_INFO": path.encode().decode("latin-1")},
    )
    assert answer.status_code < 500, answer.text
    answer.close()


# What an environment can hold: any bytes but NUL. Most of a value is sound, so that checks behind the first are met.
anything = st.binary(max_size=30).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
blank = st.sampled_from(["", "", "", " ", "\t", "\n"])
number = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["", "1e400", "-0", "0x1", "1_0", "٣", "²", "NaN", "-inf", "80", "65536", "9" * 5000]),
)
host = st.one_of(
    anything,
    st.text(st.sampled_from(list("az09.-_%[]:*é\xad\u3002")), max_size=10),
    st.sampled_from(
        ["redis", "a" * 64, "a..b", ".", "[::1]", "[fe80::1%25lo]", "[:]", "[abc]", "h%00", "%ff", "1.2.3.4"]
    ),
)
option = st.tuples(
    st.sampled_from(["foo", "db", "port", "host", "socket_timeout", "retry", "ssl", "protocol", "connection_class"]),
    anything,
).map("=".join)
address = st.tuples(
    blank,
    st.sampled_from(["http://"] * 3 + ["redis://"] * 3 + ["rediss://", "unix://", "HTTP://", "https://", "//", ""]),
    st.sampled_from(["", "", "", "u@", ":x@", "u:%ff@", "\udcff@"]),
    host,
    st.just("") | number.map(":".__add__),
    st.just("") | anything.map("/".__add__),
    st.just("") | option.map("?".__add__),
    st.sampled_from(["", "", "#", "#x"]),
    blank,
).map("".join)
number = st.tuples(blank, number, blank).map("".join) | anything
address = address | anything
SETTINGS = {
    **{(f"{name}/{name}.py", f"{name.upper()}_DELAY"): number for name in ("rng", "hasher", "worker")},
    **{(f"{name}/gunicorn.conf.py", "PORT"): number for name in SERVICES},
    **{(f"{name}/gunicorn.conf.py", "SERVE_AS_UID"): number for name in SERVICES},
    **{("worker/worker.py", name): address for name in ("RNG_URL", "HASHER_URL", "REDIS_URL")},
    ("webui/webui.py", "REDIS_URL"): address,
    ("worker/worker.py", "DEBUG"): anything,
}


def refuse(_, address):
    """In place of a socket's connect(): the same checks, and nobody listens."""
    if isinstance(address, tuple) and not 0 <= address[1] <= 65535:
        raise OverflowError
    raise ConnectionRefusedError


def numeric(host, port, *args, look_up=socket.getaddrinfo, **flags):
    """In place of getaddrinfo(): the same checks, and no name server is asked."""
    return look_up(host, port, flags=socket.AI_NUMERICHOST)


def use(service, module):
    """Use what the addresses are for; what is raised here is what the service has one line for."""
    if service == "webui/webui.py":
        assert module["app"].test_client().get("/json").status_code == 503
    if service == "worker/worker.py":
        services, send = module["services"], module["Worker"]().send
        for ask in (services.draw, partial(services.sha256, bytes(32)), partial(send, module["Batch"]())):
            with pytest.raises(services.Trouble):
                ask()


@pytest.mark.parametrize(("service", "name"), SETTINGS)
def test_any_setting_starts_the_service_or_ends_it_with_one_line(service, name):
    @settings(max_examples=150, deadline=None)
    @given(value=SETTINGS[service, name])
    @example(value="")
    @example(value="1e400")
    @example(value="http://[:]")
    @example(value="http://r ng")
    @example(value="redis://a..b")
    @example(value="redis://redis?retry=1")
    def check(value):
        with (
            patch.dict(os.environ, {name: value}),
            patch.dict(sys.modules),
            patch.object(os, "geteuid", lambda: 0),  # as in a container that is started as root
            patch.object(monkey, "patch_all"),
            patch.object(socket.socket, "connect", refuse),
            patch.object(socket, "getaddrinfo", numeric),
        ):
            for own in ("services", "settings"):  # worker's, to be imported anew
                sys.modules.pop(own, None)
            try:
                module = runpy.run_path(str(ROOT / service))
            except SystemExit as end:
                assert end.code.startswith(f"{name} is {value!r}, but must be ")
                assert len(end.code.splitlines()) == 1
            else:
                use(service, module)

    check()
