"""No request is answered with a 500, and no setting causes a traceback."""

import os
import runpy
import time
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.processes import ROOT, free_port

NOBODY = f"redis://127.0.0.1:{free_port()}"
segment = st.text(st.characters(codec="utf-8"), max_size=20) | st.integers(-5, 2**70).map(str)
path = st.lists(segment | st.just(".."), max_size=3).map(lambda parts: "/" + "/".join(parts))
method = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
name = st.sampled_from(["Content-Type", "Host", "Range", "If-None-Match", "Content-Length"])
value = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


@pytest.mark.parametrize("service", ["rng", "hasher", "webui"])
def test_no_request_is_answered_with_a_500(client, service):
    web = client(service, REDIS_URL=NOBODY)

    @settings(max_examples=100, deadline=None)
    @given(
        path=path | st.sampled_from(["/json", "/speed", "/healthz"]),
        method=method,
        headers=st.dictionaries(name, value, max_size=3),
        body=st.binary(max_size=100),
    )
    def check(path, method, headers, body):
        environ = {"PATH_INFO": path.encode().decode("latin-1")}
        answer = web.open(method=method, headers=headers, data=body, environ_overrides=environ)
        assert answer.status_code < 500 or (service, answer.status_code) == ("webui", 503)
        answer.close()

    with patch.object(time, "sleep"):
        check()


# What an environment can hold: any bytes but NUL.
anything = st.binary(max_size=30).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
number = (
    st.floats().map(str) | st.integers(-9, 99).map(str) | st.sampled_from(["٣", "1e400", "0x1"])
)
host = anything | st.sampled_from(["redis", "a" * 64, "a..b", ".", "[::1]", "[:]", "[::::]", "%ff"])
port = st.just("") | number.map(":".__add__) | anything
address = st.tuples(st.sampled_from(["http://", "redis://", ""]), host, port).map(
    lambda parts: os.fsdecode(os.fsencode("".join(parts)))  # two parts may make one character
)


@pytest.mark.parametrize(
    ("service", "setting", "values"),
    [
        ("rng", "RNG_DELAY", number),
        ("hasher", "HASHER_DELAY", number),
        ("webui", "REDIS_URL", address),
    ],
)
def test_any_setting_starts_the_service_or_is_a_one_line_error(client, service, setting, values):
    @settings(max_examples=100, deadline=None)
    @given(value=values | anything)
    @example(value="")
    @example(value="redis://a..b")
    @example(value="redis://127.0.0.1?foo=1")
    def check(value):
        try:
            web = client(service, **{setting: value})
        except SystemExit as end:
            assert end.code.startswith(f"{setting} is {value!r}, but must be ")
            assert len(end.code.splitlines()) == 1
        else:
            with patch("socket.getaddrinfo", side_effect=OSError):
                assert web.get("/json").status_code in (404, 503)

    check()


@pytest.mark.parametrize(
    ("file", "setting", "values"),
    [
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
def test_any_setting_is_accepted_at_start_or_is_a_one_line_error(file, setting, values):
    @settings(max_examples=150, deadline=None)
    @given(value=values | anything)
    @example(value="")
    def check(value):
        with patch.dict(os.environ, {setting: value}), patch("gevent.monkey.patch_all"):
            try:
                runpy.run_path(ROOT / file)
            except SystemExit as end:
                assert end.code.startswith(f"{setting} is {value!r}, but must be ")
                assert len(end.code.splitlines()) == 1

    check()
