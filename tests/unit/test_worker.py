"""What worker promises, without processes: one unit of work, its failures, its log, and counting exactly once."""

import hashlib
import logging
import sys
import threading
import time

import fakeredis
import pytest
import redis
import services

import worker

DATA = next(bytes([n]) * 32 for n in range(256) if hashlib.sha256(bytes([n]) * 32).hexdigest()[0] == "0")
FULL = "mining: backlog full until redis is back, trying again"
COIN = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def db(monkeypatch):
    db = fakeredis.FakeRedis()
    monkeypatch.setattr(services, "REDIS", db)
    return db


@pytest.fixture
def answers(monkeypatch):
    """Answers of rng and hasher by name; an exception is raised."""
    answers = {"rng": DATA, "hasher": COIN.encode()}

    def ask(service, *_, **__):
        if isinstance(answers[service], Exception):
            raise answers[service]
        return answers[service]

    monkeypatch.setattr(services, "ask", ask)
    monkeypatch.setattr(worker, "DELAY", 0.01)
    return answers


@pytest.fixture
def mining(db, answers, caplog, monkeypatch):
    """Starts a worker, and returns it and a function that stops it as SIGTERM does; all are stopped at the end."""
    caplog.set_level(logging.DEBUG, "worker")
    stops = []

    def start():
        it, asked = worker.Worker(), threading.Event()
        running = threading.Thread(target=it.run, args=[asked])

        def stop():
            asked.set()
            running.join(5)
            assert not running.is_alive()

        running.start()
        stops.append(stop)
        return it, stop

    monkeypatch.setattr(worker.signal, "sigwait", lambda asked: asked.wait())
    yield start
    for stop in stops:
        stop()


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def batch(number=1, units=1, seconds=0.3, coins=None, age=0.0, last=None):
    last = seconds / units if last is None else last
    return worker.Batch(number, units, seconds, last, time.monotonic() - age, coins or [])


def count(db, name, batch, by=1e12):
    age = time.monotonic() - batch.ended
    numbers = batch.number, batch.units, batch.seconds, batch.last, age, by
    return db.eval(services.COUNT, 0, name, *numbers, *batch.coins)


def speeds(db):
    return {int(k): float(v) for k, v in db.hgetall("speed").items() if k.isdigit()}


def test_batch_is_counted_with_its_coins(db):
    count(db, "w", batch(units=4, coins=[COIN, DATA]))
    assert db.get("hashes") == b"4"
    assert db.hgetall("wallet") == {COIN.encode(): DATA}


def test_batch_is_counted_once_however_often_and_late_it_is_sent(db):
    first, second = batch(units=4), batch(number=2, units=3)
    for sent in (first, first, second, first, second):
        count(db, "w", sent)
    assert db.get("hashes") == b"7"
    assert sum(speeds(db).values()) == pytest.approx(7, abs=0.01)


def test_batch_is_counted_once_however_long_ago_that_was(db):
    count(db, "w", batch(units=4))
    assert not [key for key in db.scan_iter() if db.ttl(key) != -1], "what expires or may be evicted is forgotten"


def test_batches_of_two_workers_do_not_shadow_each_other(db):
    count(db, "a", batch(number=9))
    count(db, "b", batch(number=1))
    assert db.get("hashes") == b"2"


@pytest.mark.parametrize("key", ["hashes", "wallet", "speed", "batches"])
def test_batch_is_stored_whole_or_not_at_all(db, key):
    db.rpush(key, "of another type")
    before = {k: db.dump(k) for k in db.scan_iter()}
    with pytest.raises(redis.ResponseError):
        count(db, "w", batch(coins=[COIN, DATA]))
    assert {k: db.dump(k) for k in db.scan_iter()} == before


def test_other_programs_may_add_to_the_counter(db):
    count(db, "w", batch(units=4))
    db.incrby("hashes", 10)
    count(db, "w", batch(number=2, units=4))
    assert db.get("hashes") == b"18"
    assert sum(speeds(db).values()) == pytest.approx(18, abs=0.01)


@pytest.mark.parametrize("reset", ["flush", "set"])
def test_reset_counter_is_no_spike_and_no_negative_speed(db, reset):
    count(db, "w", batch(units=400, seconds=120, age=1))
    db.flushall() if reset == "flush" else db.set("hashes", 0)
    count(db, "w", batch(number=2, units=4, seconds=1.2))
    assert db.get("hashes") == b"4"
    assert all(0 <= speed < 5 for speed in speeds(db).values())


def test_batch_counted_late_belongs_to_the_time_it_was_mined_in(db):
    count(db, "w", batch(units=10, seconds=2, age=60))
    now = db.time()[0]
    assert all(now - 64 <= second <= now - 59 for second in speeds(db))
    assert sum(speeds(db).values()) == pytest.approx(10, abs=0.01)


def test_batch_that_redis_hears_of_late_belongs_to_the_time_it_was_mined_in(db):
    now = db.time()[0]
    count(db, "w", batch(units=4, seconds=1), by=now - 20)
    assert all(now - 22 <= second <= now - 20 for second in speeds(db))


def test_change_of_pace_within_a_batch_shows_when_it_happened(db):
    now = db.time()[0] - 5
    count(db, "w", batch(units=11, seconds=12, last=2), by=now)
    assert speeds(db)[now] == speeds(db)[now - 1] == pytest.approx(0.5)  # 1 unit in 2 s, with its end in the middle
    assert speeds(db)[now - 3] == speeds(db)[now - 10] == pytest.approx(1)  # 10 in 10 s


def test_speed_of_more_than_300_seconds_ago_is_forgotten(db):
    now = db.time()[0]
    db.hset("speed", mapping={now - 1000: 3, now - 100: 3})
    count(db, "w", batch())
    assert now - 1000 not in speeds(db)
    assert now - 100 in speeds(db)


def test_first_unit_is_counted_at_once_then_about_once_a_second(mining, db, caplog, monkeypatch):
    begun, counted = [], threading.Event()

    def draw():
        assert not begun or counted.wait(5)
        begun.append(True)
        return DATA

    monkeypatch.setattr(services, "draw", draw)
    mining()
    until(lambda: db.get("hashes"))
    start = time.monotonic()
    counted.set()
    until(lambda: int(db.get("hashes")) > 1)
    assert 0.8 < time.monotonic() - start < 1.5
    lines = [r.message for r in caplog.records if "units of work done" in r.message]
    assert lines[0] == "1 units of work done, updating hash counter"
    assert len(lines) <= 2


def test_no_unit_falls_between_two_batches(monkeypatch):
    counted, usual = [], sys.getswitchinterval()
    monkeypatch.setattr(services, "count", lambda name, number, units, *_: counted.append(units) or 0.0)
    it = worker.Worker()
    it.mined.wait = lambda _: it.mined.is_set()  # one batch after the other
    counter = threading.Thread(target=it.count, daemon=True)
    sys.setswitchinterval(1e-6)
    try:
        counter.start()
        end = time.monotonic() + 20
        while (it.done < 20_000 or len(counted) < 20) and time.monotonic() < end:
            it.add("1", b"", 0)
        it.mined.set()
        counter.join(10)
    finally:
        sys.setswitchinterval(usual)
    assert sum(counted) == it.done
    assert len(counted) >= 20


def test_rest_is_the_delay_without_the_cpu_time_since_the_last_one(answers, monkeypatch):
    rests, cpu = [], iter([0.004, 0.005, 0.008, 0.009, 0.5, 0.5])  # s: before and after each rest
    monkeypatch.setattr(worker, "DELAY", 0.1)
    monkeypatch.setattr(worker.time, "sleep", rests.append)
    monkeypatch.setattr(worker.time, "thread_time", lambda: next(cpu))
    it = worker.Worker()
    for _ in range(3):
        it.work()
    assert rests == pytest.approx([0.096, 0.097, 0])


def test_coin_goes_into_the_wallet_and_the_log(mining, db, caplog):
    mining()
    until(lambda: db.hget("wallet", COIN))
    assert db.hget("wallet", COIN) == DATA
    assert f"Coin found: {COIN[:8]}..." in caplog.messages


def test_hash_that_does_not_begin_with_0_is_no_coin(mining, db, answers):
    answers["hasher"] = b"1" * 64
    mining()
    until(lambda: db.get("hashes"))
    assert not db.exists("wallet")


@pytest.mark.parametrize("answer", [b"0" * 63 + b"\n", b"0" * 63 + b"A", b"\xff" * 64])
def test_answer_that_is_no_hash_is_no_unit_of_work(mining, db, answers, caplog, answer):
    answers["hasher"] = answer
    mining()
    until(lambda: any("not a hash" in m for m in caplog.messages))
    assert not db.exists("hashes", "wallet")


@pytest.mark.parametrize("service", ["rng", "hasher"])
def test_trouble_is_one_line_and_its_end_another(mining, db, answers, caplog, service):
    good = answers[service]
    answers[service] = worker.Trouble(service, "Connection refused")
    it, _ = mining()
    time.sleep(0.6)  # several tries
    assert [m for m in caplog.messages if service in m] == [f"{service}: Connection refused, trying again"]
    assert it.done == 0
    answers[service] = good
    until(lambda: f"{service} is back" in caplog.messages)
    assert it.done > 0


def test_back_off_goes_from_a_tenth_to_two_seconds_with_jitter(monkeypatch):
    it, waits = worker.Worker(), []
    monkeypatch.setattr(it.stopping, "wait", waits.append)

    def fail_20_times():
        if len(waits) < 20:
            raise worker.Trouble("rng", "away")

    it.persist(fail_20_times, worker.Troubles(), it.over)
    assert 0.05 <= waits[0] <= 0.1
    assert all(1 <= wait <= 2 for wait in waits[5:])
    assert len(set(waits[5:])) > 1
    waits.clear()
    it.persist(fail_20_times, worker.Troubles(), it.over)
    assert waits[0] <= 0.1


@pytest.fixture
def clock(monkeypatch):
    """The time (s) that the worker believes it is, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    return now


def again(*causes):
    return [f"{cause}, trying again" for cause in causes]


def test_each_cause_is_told_once_and_each_service_that_is_back(clock, caplog):
    troubles = worker.Troubles()
    for cause in (("rng", "refused"), ("rng", "500"), ("rng", "refused"), ("hasher", "403")):
        troubles.begin(*cause)
    clock[0] += 2.1
    troubles.end()
    assert caplog.messages == [*again("rng: refused", "rng: 500", "hasher: 403"), "rng is back", "hasher is back"]
    troubles.begin("rng", "refused")
    assert caplog.messages[-1:] == again("rng: refused")


def test_trouble_that_comes_and_goes_is_told_once(clock, caplog):
    troubles = worker.Troubles()
    for _ in range(100):
        troubles.begin("rng", "reset")
        clock[0] += 1
        troubles.end()
    assert caplog.messages == again("rng: reset")


def test_trouble_that_is_another_each_time_is_told_five_times(clock, caplog):
    troubles = worker.Troubles()
    for number in range(100):
        troubles.begin("rng", number)
    assert caplog.messages == again(*(f"rng: {number}" for number in range(5)))


def test_nothing_is_said_to_be_back_that_was_not_asked_any_more(answers, clock, caplog):
    it, troubles = worker.Worker(), worker.Troubles()
    troubles.begin("hasher", "refused")
    clock[0] += 2.1
    it.stopping.set()
    it.persist(it.work, troubles, it.stopping)
    assert caplog.messages == again("hasher: refused")


def test_redis_away_loses_nothing_and_does_not_stop_mining(mining, db, monkeypatch, caplog):
    def fail(*_):
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(db, "eval", fail)
        it, stop = mining()
        until(lambda: it.done >= 5)
        assert it.counted == 0
    until(lambda: "redis is back" in caplog.messages)
    stop()
    assert int(db.get("hashes")) == it.done == it.counted
    assert sum("redis: away" in m for m in caplog.messages) == 1


def test_lost_reply_counts_once(mining, db, monkeypatch):
    send, lost = db.eval, []

    def lose(*args):
        answer = send(*args)
        if not lost:
            lost.append(1)
            raise redis.TimeoutError("no reply")
        return answer

    monkeypatch.setattr(db, "eval", lose)
    it, stop = mining()
    until(lambda: it.counted >= 2)
    stop()
    assert lost
    assert int(db.get("hashes")) == it.done


def test_full_backlog_stops_mining_and_says_so(mining, db, answers, monkeypatch, caplog):
    monkeypatch.setattr(worker, "BACKLOG", 3)

    def fail(*_):
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(db, "eval", fail)
        it, stop = mining()
        until(lambda: FULL in caplog.messages)
        done = it.done
        time.sleep(0.3)
        assert it.done == done
    answers["hasher"] = b"1" * 64  # no coin
    until(lambda: "mining is back" in caplog.messages and it.done > done)
    stop()
    assert int(db.get("hashes")) == it.done


def test_stop_counts_what_is_done(mining, db):
    it, stop = mining()
    until(lambda: it.done > 5)
    stop()
    assert int(db.get("hashes")) == it.done == it.counted


def test_stop_with_redis_away_says_how_many_units_stay_uncounted(mining, db, monkeypatch, caplog):
    def fail(*_):
        raise redis.ConnectionError("away")

    monkeypatch.setattr(db, "eval", fail)
    it, stop = mining()
    until(lambda: it.done)
    start = time.monotonic()
    stop()
    assert time.monotonic() - start < 2
    assert f"{it.done} units of work stay uncounted" in caplog.messages


def test_stop_lets_a_slow_redis_answer(mining, db, monkeypatch):
    count, slow, waiting = db.eval, threading.Event(), []

    def count_slowly(*args):
        if slow.is_set():
            waiting.append(True)
            time.sleep(1.8)  # services.REDIS waits 2 s
        return count(*args)

    monkeypatch.setattr(db, "eval", count_slowly)
    it, stop = mining()
    until(lambda: it.counted)
    slow.set()
    until(lambda: waiting)
    until(lambda: it.batch.units)  # one batch is under way, and there is a unit for the last
    stop()
    assert int(db.get("hashes")) == it.done == it.counted


def test_heartbeat_goes_on_while_services_are_away(mining, answers, monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "HEARTBEAT", tmp_path / "beat")
    answers["rng"] = worker.Trouble("rng", "away")
    mining()
    until(worker.HEARTBEAT.exists)
    before = worker.HEARTBEAT.stat().st_mtime_ns
    until(lambda: worker.HEARTBEAT.stat().st_mtime_ns > before)
