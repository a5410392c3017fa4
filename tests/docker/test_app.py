"""The running application: its answers, its rate, and its behaviour when containers fail."""

import re
import statistics
import time

import pytest
from support import wait_until
from support.engine import (
    DOCKER,
    PORTS,
    ROOT,
    SERVICES,
    App,
    docker,
    grows,
    ids,
    inspect,
    logs,
    processes,
    state,
    web,
    works,
)

RATES = {1: (3.1, 3.34), 2: (6.2, 6.68), 10: (9.5, 10.05)}  # hashes/s, by the number of workers
ANSWERS = [
    ("8001/", 200, r"RNG running on \S+\n"),
    ("8001/0", 200, ""),
    ("8001/-1", 404, "404 .+\n"),
    ("8001/abc", 404, "404 .+\n"),
    ("8001/99999999999", 400, "400 .+\n"),
    ("8001/healthz", 200, "ok\n"),
    ("8002/", 200, r"HASHER running on \S+\n"),
    ("8002/healthz", 200, "ok\n"),
    ("8000/", 200, "<!doctype html>.*"),
    ("8000/json", 200, r'\{"coins":\d+,"hashes":"\d+","now":\d+\.\d+\}\n'),
    ("8000/healthz", 200, "ok\n"),
]
ENDED = "{{.State.FinishedAt}}"
BATCH = re.compile(r"(\d+) units of work done, updating hash counter")
VALKEY = """version: "3.4"
services:
  redis:
    image: valkey/valkey:8-alpine
    command: valkey-server --appendonly yes
"""


def compose(app):
    """Return the Compose command of the application, without its -f options."""
    return app.command[: app.command.index("-f")]


def only(app, service):
    """Return the one container of `service`."""
    (container,) = app.containers(service)
    return container


def kill(container):
    """Kill a container's first process, and wait until Docker has started it again."""
    pid, image = inspect(container, "{{.State.Pid}} {{.Image}}").split()
    here = ["--pid=host", "--user=0", "--entrypoint=sh"]  # `docker kill` would also stop restarts
    docker("run", "--rm", *here, image, "-c", f"kill -9 {pid}")
    wait_until(lambda: inspect(container, "{{.State.Pid}}") not in (pid, "0"), 10, "a new process")


def rate(app, seconds):
    """Return the hashes/s during the next seconds, by the access log of hasher."""
    since = time.time()
    time.sleep(seconds)
    times = app.posts(since)
    return (len(times) - 1) / (times[-1] - times[0])


def milliseconds(url):
    """Return how long one request takes on a new connection (ms)."""
    began = time.monotonic()
    assert web.get(url, timeout=10).status_code == 200
    return (time.monotonic() - began) * 1000


def test_published_ports_answer_as_in_the_contract(app):
    for address, status, body in ANSWERS:
        answer = web.get(f"http://localhost:{address}", timeout=5)
        assert (address, answer.status_code) == (address, status)
        assert re.fullmatch(body, answer.text, re.S), address


def test_access_log_is_the_standard_one_without_probes(app):
    since = time.time()
    for port in PORTS.values():
        web.get(f"http://localhost:{port}/healthz", timeout=5)
    grows(5, "with one worker")  # by /json
    line = r'::ffff:[\d.]+ - - \[[^]]+\] "POST / HTTP/1.1" 200 64 "-" "-"$'
    assert re.search(line, logs(only(app, "hasher"), since), re.M)
    assert '"GET /32 HTTP/1.1" 200 32' in logs(only(app, "rng"), since)
    assert '"GET /json HTTP/1.1" 200' in logs(only(app, "webui"), since)
    assert not any("healthz" in logs(only(app, service)) for service in PORTS)


@pytest.mark.parametrize("service", SERVICES)
def test_container_is_read_only_and_no_process_is_root_or_gains_privileges(app, service):
    container = only(app, service)
    assert not works(DOCKER, "exec", "-u", "0", container, "touch", "/new")
    mounts = map(str.split, docker("exec", container, "cat", "/proc/mounts").splitlines())
    writable = {path for _, path, _, options, *_ in mounts if "rw" in options.split(",")}
    found = {path for path in writable if not re.match(r"/(proc|dev|sys)(/|$)", path)}
    assert found == ({"/data"} if service == "redis" else set())
    found = [each for each in processes(container) if each["Name"] != "sh"]
    assert found
    assert not any(0 in ids(each) for each in found)
    assert all(each["NoNewPrivs"] == "1" for each in found)


def test_redis_is_reached_from_the_networks_of_the_application_only(app):
    redis = only(app, "redis")
    assert docker("port", redis) == ""
    template = "{{range $name, $it := .NetworkSettings.Networks}}{{$name}} {{$it.IPAddress}}{{end}}"
    network, address = inspect(redis, template).split()
    ping = ["--entrypoint=timeout", "redis:8-alpine", "2", "redis-cli", "-h", address, "ping"]
    assert docker("run", "--rm", "--network", network, *ping) == "PONG"
    assert not works(DOCKER, "run", "--rm", *ping)


def test_key_of_another_type_is_a_503_with_the_reason_until_it_is_deleted(app):
    def ask(path):
        answer = web.get(f"http://localhost:8000{path}", timeout=5)
        return answer.status_code, answer.json().get("error", "")

    redis = ["exec", only(app, "redis"), "redis-cli"]
    docker(*redis, "del", "wallet")
    docker(*redis, "rpush", "wallet", "by hand")
    for path in "/json", "/speed":
        status, error = ask(path)
        assert (status, "WRONGTYPE" in error) == (503, True)
    docker(*redis, "del", "wallet")
    assert ask("/json") == ask("/speed") == (200, "")


@pytest.mark.parametrize("workers", RATES)
def test_workers_mine_at_the_expected_rate(built, workers):
    built.up(worker=workers)
    low, high = RATES[workers]
    rates = []
    while len(rates) < 3 and max(rates, default=0) < low:  # other load only lowers the rate
        rates.append(rate(built, 15))
    print(f"{workers} workers, hashes/s:", *(f"{rate:.2f}" for rate in rates))
    assert low <= max(rates) <= high


def test_webui_reads_the_chart_once_a_second_for_any_number_of_requests(app):
    def reads():
        statistics = docker("exec", only(app, "redis"), "redis-cli", "info", "commandstats")
        return int(re.search(r"cmdstat_mget:calls=(\d+)", statistics)[1])

    def ask():
        assert web.get("http://localhost:8000/speed", timeout=5).status_code == 200

    ask()
    began, before = time.monotonic(), reads()
    while time.monotonic() - began < 3:
        ask()
    assert 2 <= reads() - before <= 4


def test_index_waits_at_rng_and_not_at_hasher_with_10_workers(built):
    built.up(worker=10)
    tries = []
    while len(tries) < 3 and not (tries and 500 <= tries[-1][0] <= 1000 and tries[-1][1] < 50):
        urls = [f"http://localhost:{PORTS[name]}/" for name in ("rng", "hasher")]
        tries.append([statistics.median(milliseconds(url) for _ in range(7)) for url in urls])
    print("GET / of rng and hasher: {:.0f} and {:.1f} ms".format(*tries[-1]))
    rng, hasher = tries[-1]
    assert 500 <= rng <= 1000 and hasher < 50, tries


def test_second_rng_is_used_once_its_port_mapping_is_removed(built, tmp_path):
    file = tmp_path / "docker-compose.yml"
    lines = (ROOT / "docker-compose.yml").read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "8001:80" not in line))
    app = App(compose(built), file)
    app.up(worker=10, rng=2)
    for container in app.containers("rng"):
        wait_until(lambda it=container: "GET /32" in logs(it), 5, "both rngs are asked")
    assert rate(app, 5) > 12


@pytest.mark.parametrize("service", SERVICES)
def test_container_in_use_stops_within_2_s_and_ends_with_0(built, service):
    built.up(worker=2)
    container = built.containers(service)[0]
    began = time.monotonic()
    docker("stop", container)
    seconds = time.monotonic() - began
    print(f"{service} stopped in {seconds:.2f} s")
    assert seconds < 2
    assert inspect(container, "{{.State.ExitCode}}") == "0"


def test_stop_counts_every_unit_of_10_workers_and_up_keeps_the_data(built):
    built.down()
    built.up(worker=10)
    for service in ("rng", "webui"):
        kill(only(built, service))
    grows(5, "after rng and webui were killed")
    began = time.monotonic()
    built.compose("stop")
    seconds = time.monotonic() - began
    print(f"stopped in {seconds:.1f} s")
    assert seconds < 5
    stopped = [each for service in SERVICES for each in built.containers(service)]
    assert {inspect(each, "{{.State.ExitCode}}") for each in stopped} == {"0"}
    (redis,) = built.containers("redis")
    for worker in built.containers("worker"):
        assert inspect(worker, ENDED) < inspect(redis, ENDED), "Redis ends last"
    text = "".join(map(logs, built.containers("worker")))
    served, batches = len(built.posts()), sum(map(int, BATCH.findall(text)))
    built.compose("down")
    built.up(worker=0)
    numbers = wait_until(state, 5, "/json answers")
    assert served == batches == int(numbers["hashes"]) > 0
    assert numbers["coins"] == text.count("Coin found")


def test_down_with_v_deletes_hashes_and_coins(built):
    built.down()  # with -v
    built.up(worker=0)
    numbers = wait_until(state, 5, "/json answers")
    assert (numbers["hashes"], numbers["coins"]) == (None, 0)


def test_mining_resumes_within_5_seconds_after_a_kill_or_a_restart(app):
    for service in SERVICES:
        kill(only(app, service))
        grows(5, f"after {service} was killed")
        app.compose("restart", service)
        grows(5, f"after {service} was restarted")


def test_redis_keeps_what_was_counted_a_second_ago(built):
    built.up(worker=2)
    container = only(built, "redis")
    for end in kill, lambda container: docker("restart", container):
        before = wait_until(state, 10, "/json answers")
        time.sleep(1)  # it writes to the disk once a second
        end(container)
        after = wait_until(state, 10, "/json answers again")
        assert int(after["hashes"]) >= int(before["hashes"] or 0)
        assert after["coins"] >= before["coins"]


def test_worker_logs_the_host_and_port_that_it_cannot_reach(app):
    docker("stop", only(app, "hasher"))
    last = lambda: logs(only(app, "worker")).splitlines()[-2:]  # noqa: E731
    wait_until(lambda: all("hasher:80" in line for line in last()), 20, "two lines name hasher")
    time.sleep(3)
    assert all(re.search("hasher:80.*trying again", line) for line in last())
    docker("start", only(app, "hasher"))
    grows(10, "after hasher was started again")


def test_mining_and_chart_work_with_valkey_instead_of_redis(built, tmp_path):
    built.down()
    override = tmp_path / "valkey.yml"
    override.write_text(VALKEY)
    valkey = App((*compose(built), "-f", "docker-compose.yml"), override)
    try:
        valkey.up()
        assert "valkey" in inspect(only(valkey, "redis"), "{{.Config.Image}}")

        def drawn():
            speed = web.get("http://localhost:8000/speed", timeout=5).json()["speed"]
            return all(2.5 < each < 4 for each in speed[-3:])

        wait_until(drawn, 20, "three seconds in the chart at the rate of one worker")
        grows(5, "with Valkey")
    finally:
        valkey.down()
