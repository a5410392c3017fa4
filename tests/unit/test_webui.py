"""The answers of webui, without a server, with a Redis in this process."""

import time

import pytest
from support.processes import free_port

PAGE = ("/", "/index.html", "/json", "/speed", "/healthz", "/nothing")


@pytest.fixture
def webui(client, redis_port):
    return client("webui", REDIS_URL=f"redis://127.0.0.1:{redis_port}")


@pytest.fixture(scope="module")
def without_redis(client):
    """A webui whose Redis refuses connections."""
    return client("webui", REDIS_URL=f"redis://127.0.0.1:{free_port()}")


def is_guarded(headers):
    """Return whether an answer has all security headers."""
    policy = headers["Content-Security-Policy"]
    return (
        policy.startswith("default-src 'none'; ")
        and "script-src 'self'" in policy
        and "form-action 'none'" in policy
        and "unsafe" not in policy
        and headers["X-Content-Type-Options"] == "nosniff"
        and headers["Referrer-Policy"] == "no-referrer"
    )


def test_index_is_a_relative_redirect_to_the_page(without_redis):
    answer = without_redis.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "index.html")
    assert without_redis.get("/index.html").mimetype == "text/html"


def test_json_has_three_fields_and_hashes_is_null_before_the_first(webui):
    numbers = webui.get("/json").json
    assert abs(numbers.pop("now") - time.time()) < 2
    assert numbers == {"coins": 0, "hashes": None}


def test_json_returns_the_number_of_coins_and_the_counter_of_redis(webui, db):
    db.set("hashes", 12)
    db.hset("wallet", mapping={"0a": b"x", "0b": b"\xff"})
    numbers = webui.get("/json").json
    assert isinstance(numbers.pop("now"), float)
    assert numbers == {"coins": 2, "hashes": "12"}


def test_speed_returns_the_numbers_and_250_seconds_of_the_speed_keys(webui, db):
    now = db.time()[0]
    db.mset({f"speed:{now - 100}": "3.333333", f"speed:{now - 9}": "1.5", f"speed:{now - 400}": 7})
    answer = webui.get("/speed").json
    start, speed = answer["start"], answer["speed"]
    assert set(answer) == {"coins", "hashes", "now", "start", "speed"}
    assert isinstance(start, int)
    assert len(speed) == 250
    assert {start + i: pytest.approx(each, abs=0.01) for i, each in enumerate(speed) if each} == {
        now - 100: 3.333,
        now - 9: 1.5,
    }


def test_each_answer_to_speed_has_the_newest_counters(webui, db):
    for count in "123":  # within a second
        db.set("hashes", count)
        assert webui.get("/speed").json["hashes"] == count


def test_speed_ends_2_to_4_s_ago_when_workers_have_counted_all(webui, db):
    answer = webui.get("/speed").json
    assert 2 <= answer["now"] - (answer["start"] + 250) <= 4


def test_speed_advances_with_time(webui, db):
    first = webui.get("/speed").json["start"]
    time.sleep(1.1)
    assert webui.get("/speed").json["start"] - first in (1, 2)


@pytest.mark.parametrize("path", ["/json", "/speed"])
def test_redis_unreachable_is_503_in_json(without_redis, path):
    answer = without_redis.get(path)
    assert (answer.status_code, list(answer.json)) == (503, ["error"])
    assert "Connection refused" in answer.json["error"]
    assert without_redis.get("/healthz").text == "ok\n"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"If-None-Match": "ETAG"}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-Modified-Since": "DATE"}, 304),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"Range": "bytes=0-3"}, 206),
        ({"Range": "bytes=0-3", "If-Range": '"x"'}, 200),
        ({"Range": "bytes=999999-"}, 416),
        ({"Range": "bytes=x"}, 416),
    ],
)
def test_conditional_request_is_answered_as_in_rfc_9110(without_redis, given, status):
    whole = without_redis.get("/page.css")
    known = {"ETAG": whole.headers["ETag"], "DATE": whole.headers["Last-Modified"]}
    given = {name: known.get(value, value) for name, value in given.items()}
    answer = without_redis.get("/page.css", headers=given)
    assert answer.status_code == status
    body = {200: whole.data, 206: whole.data[:4], 304: b""}
    assert answer.data == body.get(status, answer.data)
    assert is_guarded(answer.headers)


@pytest.mark.parametrize("path", PAGE)
def test_head_is_get_without_its_body_and_options_names_the_methods(without_redis, path):
    get, head = without_redis.get(path), without_redis.head(path)
    assert (head.status_code, head.data) == (get.status_code, b"")
    assert {**head.headers, "Date": ""} == {**get.headers, "Date": ""}
    options = without_redis.options(path)
    assert (options.status_code, options.data) == (200, b"")
    assert set(options.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert all(is_guarded(answer.headers) for answer in (head, options))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
        ("POST", "/json", 405),
        ("GET", "/uplot/x", 404),
    ],
)
def test_other_requests_get_a_one_line_error(without_redis, method, path, status):
    answer = without_redis.open(path, method=method)
    assert (answer.status_code, answer.mimetype) == (status, "text/plain")
    assert answer.text.count("\n") == 1


@pytest.mark.parametrize("path", PAGE)
def test_every_answer_has_the_security_headers(without_redis, path):
    assert is_guarded(without_redis.get(path).headers)
