"""What rng promises, without a server."""

import threading
import time

import pytest

import rng


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(rng, "DELAY", 0)
    return rng.app.test_client()


def test_index_names_the_container(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.text == f"RNG running on {rng.socket.gethostname()}\n"
    assert answer.mimetype == "text/plain"


@pytest.mark.parametrize("count", [0, 1, 32, rng.CHUNK, rng.CHUNK + 1, rng.MAX_BYTES])
def test_draw_returns_as_many_bytes_as_asked_for(client, count):
    answer = client.get(f"/{count}")
    assert answer.status_code == 200
    assert answer.mimetype == "application/octet-stream"
    assert len(answer.data) == count == answer.content_length


def test_draws_differ(client):
    assert client.get("/32").data != client.get("/32").data


def test_draw_comes_from_the_operating_system_in_chunks(client, monkeypatch):
    sizes = []
    monkeypatch.setattr(rng.os, "urandom", lambda size: sizes.append(size) or bytes(size))
    assert len(client.get(f"/{rng.CHUNK + 5}").data) == rng.CHUNK + 5
    assert sizes == [rng.CHUNK, 5]


@pytest.mark.parametrize("count", [rng.MAX_BYTES + 1, 99999999999, 10**400])
def test_draw_of_too_much_names_the_limit_in_one_line(client, count):
    answer = client.get(f"/{count}")
    assert answer.status_code == 400
    assert str(rng.MAX_BYTES) in answer.text
    assert answer.text.count("\n") == 1


@pytest.mark.parametrize("path", ["/-1", "/abc", "/1e3", "/1.5", "/32/", "/healthz/x", "/static/x"])
def test_anything_else_is_404_in_one_line(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (404, "text/plain", 1)


@pytest.mark.parametrize("path", ["/", "/32", "/healthz"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_wrong_method_is_405_in_one_line_and_names_the_right_ones(client, method, path):
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.mimetype, answer.text.count("\n")) == (405, "text/plain", 1)
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/32"])
def test_request_waits_behind_a_draw(client, monkeypatch, path):
    drawing, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(rng.time, "sleep", lambda _: drawing.set() or go_on.wait(5))
    draw = threading.Thread(target=rng.app.test_client().get, args=["/32"])
    draw.start()
    assert drawing.wait(5)
    later = threading.Thread(target=rng.app.test_client().get, args=[path])
    later.start()
    later.join(0.2)
    assert later.is_alive()
    assert client.get("/healthz").text == "ok\n"  # but a probe does not wait
    go_on.set()
    draw.join(5)
    later.join(5)
    assert not later.is_alive()


def test_slow_reader_does_not_hold_up_the_next_draw(client):
    unread = client.get(f"/{rng.MAX_BYTES}", buffered=False)
    assert len(client.get("/32").data) == 32
    unread.close()


def test_draw_takes_its_delay(client, monkeypatch):
    monkeypatch.setattr(rng, "DELAY", 0.1)
    start = time.monotonic()
    client.get("/1")
    assert time.monotonic() - start >= 0.1


def test_queue_loses_no_time_by_waking_up_late_nor_makes_up_for_a_long_pause(client, monkeypatch):
    clock, late, arrivals, ends = [100.0], [0, 0, 10, 0.004, 0.004], [], []

    def sleep(seconds):
        clock[0] += seconds + late.pop()

    monkeypatch.setattr(rng, "DELAY", 0.1)
    monkeypatch.setattr(rng, "free_at", 0)
    monkeypatch.setattr(rng.time, "monotonic", lambda: arrivals.pop() if arrivals else clock[0])
    monkeypatch.setattr(rng.time, "sleep", sleep)
    for waited in (0, 0.05, 0.05, 0.05, 0.05):
        arrivals.append(clock[0] - waited)
        client.get("/1")
        ends.append(clock[0])
    assert ends == pytest.approx([100.104, 100.204, 110.3, 110.35, 110.45])
