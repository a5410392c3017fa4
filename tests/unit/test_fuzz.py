"""No request is answered with a 500, and no setting causes a traceback."""

import os
import runpy
import socket
import threading
import time
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.processes import ROOT

text = st.binary(max_size=30).map(lambda raw: raw.decode("utf-8", "replace"))
segment = text | st.integers(-5, 2**70).map(str)
path = st.lists(segment | st.just(".."), max_size=3).map(lambda parts: "/" + "/".join(parts))
method = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
name = st.sampled_from(
    ["Content-Type", "Host", "Range", "If-None-Match", "If-Modified-Since", "Content-Length",
     "Accept"]
)  # fmt: skip
value = st.text(st.sampled_from([chr(code) for code in range(32, 127)]), max_size=30)


@pytest.mark.parametrize("service", ["rng", "hasher", "webui"])
def test_no_request_is_answered_with_a_500(client, redis_port, service):
    web = client(service, REDIS_URL=f"redis://127.0.0.1:{redis_port}")

    @settings(max_examples=150, deadline=None)
    @given(
        path=path | st.sampled_from(["/json", "/speed", "/healthz"]),
        method=method,
        headers=st.dictionaries(name, value, max_size=3),
        body=st.binary(max_size=100),
    )
    def check(path, method, headers, body):
        environ = {"PATH_INFO": path.encode().decode("latin-1")}
        answer = web.open(method=method, headers=headers, data=body, environ_overrides=environ)
        assert answer.status_code < 500
        answer.close()

    with patch.object(time, "sleep"):
        check()


# What an environment can hold: any bytes but NUL.
anything = st.binary(max_size=30).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
NUMBERS = ["", "-1", "-0", "0", "1_0", "0x1", "1e400", "9" * 5000, "nan", "-inf", "٣", "²", "http"]
NUMBERS += ["31", "65536", " 80", "80\n", "0.1\x01"]
HOSTS = [
    "redis",
    "1.2.3.4",
    "a" * 64,
    "a..b",
    ".",
    "-",
    "[::1]",
    "[fe80::1%25lo]",
    "[:]",
    "%ff",
    "r g",
]
SCHEMES = (
    ["http://"] * 3 + ["redis://"] * 3 + ["rediss://", "unix://", "HTTP://", "https://", "//", ""]
)
OPTIONS = ["", "", "/0", "/x", "?foo=1", "?retry=1", "?ssl=1", "?protocol=x", "#", "#x", " ", "\n"]
ADDRESSES = ["", "rng", "http://:x", "http://[", "http://[:]", "http://r ng", "http://redis"]
ADDRESSES += ["https://rng", "redis://a..b", "redis://127.0.0.1?foo=1", "redis://redis?retry=1"]
number = st.floats().map(str) | st.integers(-(10**20), 10**20).map(str) | st.sampled_from(NUMBERS)
blank = st.sampled_from(["", "", "", " ", "\n", "\t"])
host = st.text(st.sampled_from("az09.-_%[]:*é\xad\u3002"), max_size=10)
address = st.tuples(
    blank,
    st.sampled_from(SCHEMES),
    st.sampled_from(["", "", "", "u@", ":x@", "u:%ff@", "\udcff@"]),
    st.sampled_from(HOSTS) | host | anything,
    st.just("") | number.map(":".__add__) | anything,
    st.sampled_from(OPTIONS) | anything,
    blank,
).map(lambda parts: os.fsdecode(os.fsencode("".join(parts))))  # two parts may make one character


class Paused(Exception):
    """Raised instead of the pause between two attempts."""


def sleep(_):
    if threading.current_thread() is threading.main_thread():
        raise Paused


def look_up(host, port, *_, original=socket.getaddrinfo, **options):
    """Check host and port as getaddrinfo() does, without asking a name server."""
    return original(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


def refuse(_, address):
    """Check the port as connect() does, and refuse the connection."""
    if isinstance(address, tuple) and not 0 <= address[1] <= 65535:
        raise OverflowError
    raise ConnectionRefusedError


def without_network():
    """Return a context in which no connection succeeds."""
    patches = ExitStack()
    patches.enter_context(patch("socket.getaddrinfo", look_up))
    patches.enter_context(patch("socket.socket.connect", refuse))
    return patches


def check_each(check, values):
    """Call `check(value)` with the values known to be difficult, then with many generated ones."""
    for known in NUMBERS if values is number else ADDRESSES:
        check = example(value=known)(check)
    settings(max_examples=150, deadline=None)(given(value=values | anything)(check))()


@pytest.mark.parametrize(
    ("service", "setting", "values"),
    [
        ("rng", "RNG_DELAY", number),
        ("hasher", "HASHER_DELAY", number),
        ("webui", "REDIS_URL", address),
    ],
)
def test_any_setting_starts_the_service_or_is_a_one_line_error(client, service, setting, values):
    def check(value):
        try:
            web = client(service, **{setting: value})
        except SystemExit as end:
            assert end.code.startswith(f"{setting} is {value!r}, but must be ")
            assert len(end.code.splitlines()) == 1
        else:
            with without_network():
                assert web.get("/json").status_code in (404, 503)

    check_each(check, values)


@pytest.mark.parametrize(
    ("file", "setting", "values"),
    [
        ("worker/worker.py", "DEBUG", anything),
        ("worker/worker.py", "WORKER_DELAY", number),
        ("worker/worker.py", "RNG_URL", address),
        ("worker/worker.py", "HASHER_URL", address),
        ("worker/worker.py", "REDIS_URL", address),
        *(
            (f"{service}/gunicorn.conf.py", "PORT", number)
            for service in ("rng", "hasher", "webui")
        ),
    ],
)
def test_any_setting_leads_to_work_or_is_a_one_line_error(file, setting, values):
    def check(value):
        patches = [patch(name) for name in ("gevent.monkey.patch_all", "signal.signal")]
        patches += [patch("time.sleep", sleep), patch.dict(os.environ, {setting: value})]
        with without_network() as context:
            for each in patches:
                context.enter_context(each)
            try:
                runpy.run_path(ROOT / file, run_name="__main__")
            except Paused:  # after its first attempt, at rng
                pass
            except SystemExit as end:
                assert end.code.startswith(f"{setting} is {value!r}, but must be ")
                assert len(end.code.splitlines()) == 1

    check_each(check, values)
