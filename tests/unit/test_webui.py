"""What webui promises, without a server."""

import time

import fakeredis
import gevent.event
import pytest
import redis

import webui


@pytest.fixture
def db(monkeypatch):
    db = fakeredis.FakeRedis(decode_responses=True)
    monkeypatch.setattr(webui, "db", db)
    return db


@pytest.fixture
def client(db):
    return webui.app.test_client()


def test_index_redirects_to_the_page(client):
    answer = client.get("/")
    assert (answer.status_code, answer.location) == (302, "/index.html")
    assert client.get("/index.html").mimetype == "text/html"


def test_json_before_the_first_hash(client):
    answer = client.get("/json").json
    assert (answer["coins"], answer["hashes"]) == (0, None)
    assert isinstance(answer["now"], float)


def test_json_gives_the_wallet_and_the_counter_as_redis_does(client, db):
    db.set("hashes", 12)
    db.hset("wallet", mapping={"0a": b"x", "0b": b"y"})
    answer = client.get("/json").json
    assert (answer["coins"], answer["hashes"]) == (2, "12")
    assert set(answer) == {"coins", "hashes", "now"}


def test_speed_is_given_for_whole_settled_seconds(client, db):
    now = db.time()[0]
    db.hset("speed", mapping={now - 10: "3.3333333", now - 9: "1.5", now: "7"})
    answer = client.get(f"/json?since={now - 11}").json
    assert answer["start"] == now - 11
    assert answer["speed"][:4] == [None, 3.333, 1.5, None]
    assert answer["start"] + len(answer["speed"]) <= answer["clock"] - 2
    assert now <= answer["clock"] <= now + 5


def test_speed_goes_back_250_seconds_at_most(client):
    assert len(client.get("/json?since=0").json["speed"]) == 250
    assert client.get("/json?since=9e99").json["speed"] == []


def requests_during_a_read(monkeypatch, answers):
    """Begin a read and, while it goes on, 20 for each of two seconds; return the reads of Redis, and what all got."""
    reads, all_there = [], gevent.event.Event()

    def read(_script, _keys, since, _history):
        reads.append(since)
        number = len(reads)
        all_there.wait()
        return answers(number)

    monkeypatch.setattr(webui.db, "eval", read)

    def request(since):
        try:
            return webui.read(since)
        except redis.RedisError as error:
            return type(error)

    first = gevent.spawn(request, 1)
    gevent.sleep(0)
    late = [gevent.spawn(request, since) for since in 20 * (1, 2)]
    gevent.sleep(0)
    all_there.set()
    gevent.joinall([first, *late], timeout=5)
    return reads, [each.value for each in (first, *late)]


def test_requests_that_come_together_share_one_read_that_begins_after_them(db, monkeypatch):
    reads, got = requests_during_a_read(monkeypatch, lambda number: number)
    assert reads == [1, 2, 1, 2]
    assert got == [1, 3, 2, *19 * [3, 4]]
    assert not webui.turns and not webui.to_begin


def test_all_who_share_a_read_hear_of_its_trouble_and_the_next_read_works(db, monkeypatch):
    def trouble(number):
        if number <= 4:
            raise redis.ConnectionError("away")
        return "back"

    assert requests_during_a_read(monkeypatch, trouble)[1] == 41 * [redis.ConnectionError]
    assert webui.read(1) == "back"


def test_all_who_share_a_silent_read_are_told_within_2_s(db, monkeypatch):
    begun = time.monotonic()
    assert requests_during_a_read(monkeypatch, lambda _: gevent.sleep(10))[1] == 41 * [redis.TimeoutError]
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("since", ["", "x", "nan", "inf", "-inf"])
def test_bad_since_is_400_in_json(client, since):
    answer = client.get(f"/json?since={since}")
    assert answer.status_code == 400
    assert "since" in answer.json["error"]


@pytest.mark.parametrize("error", [redis.ConnectionError("x"), redis.TimeoutError("y"), redis.ResponseError("z")])
def test_redis_away_is_503_and_the_next_request_works(client, db, monkeypatch, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(db, "eval", fail)
        answer = client.get("/json")
        assert answer.status_code == 503
        assert str(error) in answer.json["error"]
        assert client.get("/healthz").text == "ok\n"
    assert client.get("/json").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/x", 404), ("POST", "/", 405), ("GET", "/..%2fwebui.py", 404), ("GET", "/uplot/../../../webui.py", 404)],
)
def test_wrong_requests_get_one_line(client, method, path, status):
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (status, "text/plain", 1)


def test_wrong_method_on_json_is_405_in_json(client):
    answer = client.post("/json")
    assert answer.status_code == 405
    assert set(answer.json) == {"error"}


@pytest.mark.parametrize("path", ["/", "/index.html", "/json", "/healthz", "/x", "/uplot/uPlot.min.css"])
def test_every_answer_has_the_security_headers(client, path):
    headers = client.get(path).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
