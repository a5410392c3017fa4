"""Whatever the path, method, body and headers are, no route answers with a 500."""

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hasher
import rng
import webui

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


@pytest.mark.parametrize("name", SERVICES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=path, method=method, headers=headers, body=st.binary(max_size=100), query=st.text(max_size=20))
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
