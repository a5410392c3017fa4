"""How fast, how big and how soon: DockerCoins measured in its containers. `make bench` prints the table.

A run takes everything once, so that the runs of one figure lie minutes apart: other load on the machine comes and goes.
"""

import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from heapq import heapify, heapreplace
from http.client import HTTPConnection, HTTPException
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
ROOT_USER = os.geteuid() == 0  # may read what containers' processes have in memory, and enter their networks
QUICK = bool(os.environ.get("QUICK"))
OUT = HERE / "out" if QUICK else HERE  # one quick run is not what the README shows
RUNS = 1 if QUICK else 3
# Seconds that are measured: a rate with the delays, one without, requests from a load tool, a rate on the cluster.
PACED, FLAT_OUT, LOAD, CLUSTER = (5, 4, 1, 12) if QUICK else (10, 8, 3, 25)
project = "dockercoinsbench"
NAMESPACE = f"dockercoins-bench-{os.getpid()}"
OWN = ("rng", "hasher", "webui", "worker")  # services with an image of this repository
SERVICES = (*OWN, "redis")
NO_DELAYS = {"RNG_DELAY": "0", "HASHER_DELAY": "0", "WORKER_DELAY": "0"}
REQUESTS = {  # what is asked how often: of which service, on which published port, for which path, by which method
    "rng": ("rng", 8001, "/32", "GET"),
    "hasher": ("hasher", 8002, "/", "POST"),
    "/json": ("webui", 8000, "/json", "GET"),
}
SERVED = re.compile(r'^(\S+) .*"POST / HTTP/1.1" 200', re.M)  # a unit of work in hasher's access log, behind its time

# What the original did on the machine of the tests, and what this port is to reach there.
AIMS = {
    "1 worker, hashes/s": ("3.25", "3.30"),
    "2 workers, hashes/s": ("6.58", "6.60"),
    "10 workers, hashes/s": ("9.79", "9.9"),
    "10 workers, 2 rng replicas, hashes/s": ("18.6", "18.6"),
    "10 workers, 5 rng replicas, hashes/s": ("27.6", "28.5"),
    "1 worker, no delays, hashes/s": ("303", "600"),
    "4 workers, no delays, hashes/s": ("560", "1000"),
    "rng, 8 clients, kept alive, requests/s": ("1990", "4000"),
    "hasher, 8 clients, kept alive, requests/s": ("3640", "4000"),
    "/json, 16 clients, kept alive, requests/s": ("6740", "7000"),
    "webui with 100 pages open, % of a CPU": ("", "10"),
    "memory idle, rng + hasher + webui + worker, MB": ("196", "150"),
    "up to first counted hash, s": ("3 to 13", "2"),
    "stop, s": ("10.6", "1"),
}
figures = defaultdict(list)  # what was measured, by its title


def say(line):
    """Tell whoever waits for the table."""
    print(f"bench: {line}", file=sys.stderr)


class Failed(Exception):
    """What ends the benchmark with one line."""


def run(*command, timeout=60, given=None, errors=subprocess.PIPE, **env):
    """Return what a command prints; whoever runs the benchmark may have settings, which stay out of it."""
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_DELAY") and k not in ("REGISTRY", "DEBUG")}
    clean |= {"COMPOSE_PROJECT_NAME": project, "TAG": "bench", "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=clean | env, input=given, text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(error) from None
    if done.returncode:
        raise Failed(f"{' '.join(command[:4])}: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    return done.stdout


def compose(*args, **env):
    """Run Compose on the repository's own file."""
    return run(*COMPOSE, "-f", str(ROOT / "docker-compose.yml"), *args, timeout=300, **env)


def wait(condition, seconds, what):
    """Return the first true value of condition(), asked for at most `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return value


class Container:
    """A running container, with what the kernel knows of it."""

    def __init__(self, facts):
        self.id, self.service = facts["Id"], facts["Config"]["Labels"]["com.docker.compose.service"]
        self.pid = facts["State"]["Pid"]
        lines = Path(f"/proc/{self.pid}/cgroup").read_text().splitlines()
        groups = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
        folder = "cpuacct" + groups["cpuacct"] if "cpuacct" in groups else groups[""].lstrip("/")  # version 1 or 2
        self.cgroup = Path("/sys/fs/cgroup") / folder

    def cpu(self):
        """Return the CPU time (s) that was used."""
        if (file := self.cgroup / "cpuacct.usage").exists():
            return int(file.read_text()) / 1e9
        return int((self.cgroup / "cpu.stat").read_text().split()[1]) / 1e6

    def memory(self):
        """Return the proportional set size (MB) of its processes: what they share is divided among those who do."""
        total = 0
        for pid in (self.cgroup / "cgroup.procs").read_text().split():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (FileNotFoundError, ProcessLookupError):  # a health check that has just ended
                continue
            total += int(re.search(r"^Pss: +(\d+) kB", rollup, re.M)[1]) * 1024 / 1e6
        return total

    def log(self, since=0):
        """Return the lines of the log from `since` (s), each behind its time."""
        return run("docker", "logs", "-t", "--since", f"{since:.3f}", self.id, errors=subprocess.STDOUT)


def containers():
    """Return the running containers by service."""
    found = {service: [] for service in SERVICES}
    label = f"label=com.docker.compose.project={project}"
    for facts in json.loads(run("docker", "inspect", *run("docker", "ps", "-q", "--filter", label).split())):
        container = Container(facts)
        found[container.service].append(container)
    return found


def up(workers, **env):
    """Have the application run with so many workers, all of them counting; return its containers."""
    since = time.time()
    compose("up", "-d", "--scale", f"worker={workers}", **env)
    found = containers()
    for worker in found["worker"]:
        wait(lambda worker=worker: "units of work done" in worker.log(since), 20, "every worker counts")
    return found


def rate(log, seconds):
    """Return the hashes/s of the next seconds, from one unit of work in hasher's log to another.

    The counter would not do: it moves in steps of a worker's batch, a second's work.
    """
    since = time.time()
    time.sleep(seconds)
    stamps = [match[1] for match in SERVED.finditer(log(since))]
    times = sorted(t for stamp in stamps if (t := datetime.fromisoformat(stamp[:26] + "+00:00").timestamp()) >= since)
    if len(times) < 3:
        raise Failed(f"hasher served {len(times)} units of work in {seconds} s")
    return (len(times) - 1) / (times[-1] - times[0])


def mining(title, found, seconds, cost=False):
    """Note the rate, and if wanted the CPU time that each service spends on 1,000 hashes meanwhile."""
    begun, before = time.monotonic(), {service: sum(each.cpu() for each in found[service]) for service in SERVICES}
    speed = rate(found["hasher"][0].log, seconds)
    figures[f"{title}, hashes/s"].append(speed)
    for service in SERVICES if cost else ():
        spent = sum(each.cpu() for each in found[service]) - before[service]
        thousands = speed * (time.monotonic() - begun) / 1000
        figures[f"{title}, CPU time per 1,000 hashes, {service}, s"].append(spent / thousands)


def memory(found):
    """Return how much memory (MB) a container of each service has, the largest one; nothing if we may not read it."""
    return {name: max(each.memory() for each in group) for name, group in found.items() if group and ROOT_USER}


def first_hash():
    """Return how long (s) it takes from `up -d` to the first counted hash, as /json shows it."""

    def counted():
        browser = HTTPConnection("127.0.0.1", 8000, timeout=2)
        try:
            browser.request("GET", "/json")
            return json.load(browser.getresponse()).get("hashes")
        except (OSError, HTTPException):
            return None
        finally:
            browser.close()

    begun = time.monotonic()
    compose("up", "-d")
    wait(counted, 30, "the first hash is counted")
    return time.monotonic() - begun


def page(end):
    """Ask webui what an open page asks, when it asks (webui/files/page.js), until `end` (s, monotonic)."""
    browser, since = HTTPConnection("127.0.0.1", 8000, timeout=5), 0
    while time.monotonic() < end:
        try:
            browser.request("GET", f"/json?since={since}")
            answer = json.load(browser.getresponse())
            since = answer["start"] + len(answer["speed"]) - 5
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise Failed(f"an open page got no answer: {error}") from None
        time.sleep(max(0.2, 1 - (answer["clock"] - 0.15) % 1))
    browser.close()


def watched(webui, seconds, pages=100):
    """Note how much of a CPU webui takes while so many pages are open."""
    with ThreadPoolExecutor(pages) as browsers:
        open_pages = [browsers.submit(page, time.monotonic() + seconds + 3) for _ in range(pages)]
        time.sleep(2)  # each has what was before it
        begun, before = time.monotonic(), webui.cpu()
        time.sleep(seconds)
        spent = (webui.cpu() - before) / (time.monotonic() - begun)
        for each in open_pages:
            each.result()
    figures[f"webui with {pages} pages open, % of a CPU"].append(100 * spent)


def plural(count, word):
    """Return `1 worker`, `2 workers`."""
    return f"{count} {word}{'s' * (count != 1)}"


def measure_paced():
    """With the lesson's delays, where the limits are arithmetic."""
    figures["up to first counted hash, s"].append(first_hash())
    for workers in (1, 2, 4, 10):
        found = up(workers)
        mining(plural(workers, "worker"), found, PACED, cost=workers == 10)
        if workers == 1 and (idle := memory(found)):
            figures["memory idle, rng + hasher + webui + worker, MB"].append(sum(idle[name] for name in OWN))
            for service in SERVICES:
                figures[f"memory idle, {service}, MB"].append(idle[service])
        if workers == 10:
            watched(found["webui"][0], PACED)
    compose("up", "-d", "--scale", "worker=1")
    begun = time.monotonic()
    compose("stop")
    figures["stop, s"].append(time.monotonic() - begun)
    down()


def measure_flat_out():
    """Without the delays, where the limit is the machine."""
    seen = []  # memory after each load
    for workers in (1, 2, 4, 8):
        found = up(workers, **NO_DELAYS)
        mining(f"{plural(workers, 'worker')}, no delays", found, FLAT_OUT, cost=workers in (1, 4))
        seen.append(memory(found))
    compose("up", "-d", "--scale", "worker=0", **NO_DELAYS)
    found = containers()
    for name, (service, port, path, *method) in REQUESTS.items():
        # From inside the container's network, if we may: from outside, one more process forwards each connection.
        enter = ("nsenter", "-t", str(found[service][0].pid), "-n") if ROOT_USER else ()
        url = f"http://127.0.0.1:{80 if enter else port}{path}"
        for how, close in (("kept alive", ()), ("a connection each", ("close",))):
            for clients in (1, 8, 16):
                wrk = ("wrk", "-t1", f"-c{clients}", f"-d{LOAD}s", "-s", str(HERE / "wrk.lua"), url, "--")
                result = json.loads(run(*enter, *wrk, *method, *close).splitlines()[-1])
                title = f"{name}, {plural(clients, 'client')}, {how}"
                for unit in ("requests/s", "p50, ms", "p99, ms"):
                    figures[f"{title}, {unit}"].append(result[unit])
                if result["failed"]:
                    say(f"{title}: {result['failed']} requests failed")
        seen.append(memory(found))
    for service in SERVICES if ROOT_USER else ():
        figures[f"memory loaded, {service}, MB"].append(max(each.get(service, 0) for each in seen))
    down()


def down():
    """Remove the containers, data too. A network that Docker 20.10 takes for still in use is left to it."""
    global project
    try:
        compose("down", "-v", "--remove-orphans", "-t", "5")
    except Failed as error:
        if "active endpoints" not in str(error):
            raise
        say(error)
        run("docker", "volume", "rm", "-f", f"{project}_redis")
        project += "x"


def kubectl(*args, timeout=150, given=None):
    """Run kubectl in the benchmark's namespace."""
    return run("kubectl", "-n", NAMESPACE, *args, timeout=timeout, given=given)


def scale(app, replicas):
    """Scale a Deployment and wait until it is so."""
    kubectl("scale", "deployment", app, f"--replicas={replicas}")
    kubectl("rollout", "status", "deployment", app, "--timeout=120s")


def measure_cluster():
    """Ten workers and more than one rng, on the cluster that KUBECONFIG names; its node runs this Docker's images."""

    def log(since):
        return kubectl("logs", "deployment/hasher", "--timestamps", f"--since={int(time.time() - since) + 2}s")

    def all_count():
        return kubectl("logs", "-l", "app=worker", "--tail=-1", "--prefix").count("units of work done") >= 10

    run("kubectl", "create", "namespace", NAMESPACE)
    try:
        manifests = "\n---\n".join(file.read_text() for file in sorted((ROOT / "k8s").glob("*.yaml")))
        kubectl("apply", "-f", "-", given=re.sub(r"(image: \S+/dockercoins-\w+):\S+", r"\1:bench", manifests))
        for service in SERVICES:
            scale(service, 10 if service == "worker" else 1)
        wait(all_count, 60, "all workers of the cluster count")
        for _ in range(RUNS):
            for replicas in (2, 5):
                scale("rng", replicas)
                time.sleep(2)  # what waits at the replica that was there has to spread
                speed = rate(log, CLUSTER)
                figures[f"10 workers, {replicas} rng replicas, hashes/s"].append(speed)
    finally:
        run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=120s", timeout=150)


def measure_images():
    """The size of each image on top of its base."""
    base, *sizes = (
        json.loads(run("docker", "image", "inspect", name))[0]["Size"]
        for name in ("python:3.13-slim", *(f"127.0.0.1:30500/dockercoins-{service}:bench" for service in OWN))
    )
    for service, size in zip(OWN, sizes, strict=True):
        figures[f"image on top of its base, {service}, MB"].append((size - base) / 1e6)


def show(value):
    """Return a number with three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def middle(title):
    """Return the median of a figure."""
    return statistics.median(figures[title])


def table(about):
    """Return the Markdown table."""
    lines = [about, "", "| | median | min to max | original | reach |", "| --- | --- | --- | --- | --- |"]
    for title, values in figures.items():
        if re.search(r", p\d+, ms$", title):
            continue  # beside its rate
        text = title
        if title.endswith(" requests/s"):
            p50, p99 = (show(middle(title.replace("requests/s", f"{p}, ms"))) for p in ("p50", "p99"))
            text += f" (p50 {p50} ms, p99 {p99} ms)"
        spread = f"{show(min(values))} to {show(max(values))}" if len(values) > 1 else ""
        original, reach = AIMS.get(title, ("", ""))
        lines.append(f"| {text} | {show(middle(title))} | {spread} | {original} | {reach} |")
    return "\n".join(lines) + "\n"


def random_picks(replicas, workers=10, units=50_000):
    """Return the most hashes/s when each draw picks one of the replicas at random, by playing it through.

    0.1 s at the replica, one at a time, and 0.2 s elsewhere; nothing else takes time.
    """
    free, due = [0.0] * replicas, [0.3 * i / workers for i in range(workers)]  # when a replica is, when workers ask
    heapify(due)
    dice = random.Random(1)
    for _ in range(units):
        replica = dice.randrange(replicas)
        free[replica] = max(due[0], free[replica]) + 0.1
        heapreplace(due, free[replica] + 0.2)
    return units / max(free)


STYLE = """text { font: 13px sans-serif; fill: #333 } .title { font-weight: bold } .axis { stroke: #999 }
.limit { stroke: #d2691e; stroke-dasharray: 5 4; fill: none; stroke-width: 2 } .end { text-anchor: end }
.rate { stroke: steelblue; fill: none; stroke-width: 2 } .dot { fill: steelblue } .mid { text-anchor: middle }
.name-limit { fill: #b5530f } .name-rate { fill: #33658a }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .name-limit { fill: #f0a060 } .name-rate, .dot { fill: #7fb3dd } .rate { stroke: #7fb3dd } }"""


def panel(title, unit, titles, limit, name):
    """Return a panel of the picture: the rates of `titles` (by x), each with min and max, beside their `limit`."""
    high = 1.15 * max(max(max(figures[each]) for each in titles.values()), *limit.values())
    wide = max(titles)

    def at(x, y):
        return f"{45 + 225 * x / wide:.1f},{230 - 180 * y / high:.1f}"

    def line(kind, points):
        return f'<polyline class="{kind}" points="{" ".join(at(x, y) for x, y in points)}"/>'

    parts = [f'<text class="title" x="45" y="20">{title}</text><text class="mid" x="157" y="268">{unit}</text>']
    parts += ['<polyline class="axis" fill="none" points="45,40 45,230 275,230"/>', line("limit", limit.items())]
    parts.append(line("rate", [(x, middle(each)) for x, each in titles.items()]))
    for x, each in titles.items():
        left, top = at(x, middle(each)).split(",")
        parts.append(line("rate", [(x, min(figures[each])), (x, max(figures[each]))]))
        parts.append(f'<circle class="dot" cx="{left}" cy="{top}" r="4"/>')
        parts.append(f'<text class="mid" x="{left}" y="248">{x}</text>')
        side, right, below = ("name-rate end", 4, 27) if x == wide else ("name-rate", 6, 19)
        place = f'x="{float(left) + right:.1f}" y="{float(top) + below:.1f}"'
        parts.append(f'<text class="{side}" {place}>{show(middle(each))}</text>')
    left, top = at(*list(limit.items())[-1]).split(",")
    parts.append(f'<text class="name-limit end" x="{left}" y="{float(top) - 8}">{name}</text>')
    return "".join(parts)


def picture():
    """Return how the rate grows with workers and with rng replicas, beside what limits it, as SVG."""
    paced = {n: f"{plural(n, 'worker')}, hashes/s" for n in (1, 2, 4, 10)}
    panels = [panel("hashes/s", "workers", paced, {0: 0, 3: 10, 10: 10}, "limit: 3.33 each, 10 in all")]
    replicas = {1: paced[10]} | {n: f"10 workers, {n} rng replicas, hashes/s" for n in (2, 5)}
    if all(title in figures for title in replicas.values()):
        limit = {n: random_picks(n) for n in range(1, 6)}
        panels.append(panel("hashes/s, 10 workers", "replicas of rng", replicas, limit, "limit: random picks"))
    spent = sum(middle(f"4 workers, no delays, CPU time per 1,000 hashes, {service}, s") for service in SERVICES)
    most = os.cpu_count() * 1000 / spent
    flat_out = {n: f"{plural(n, 'worker')}, no delays, hashes/s" for n in (1, 2, 4, 8)}
    panels.append(panel("hashes/s, no delays", "workers", flat_out, {0: most, 8: most}, "limit: CPUs, all busy"))
    places = "".join(f'<g transform="translate({300 * i},0)">{each}</g>' for i, each in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {300 * len(panels)} 280" role="img">'
        f"<title>Hashes per second by workers and replicas, beside their limits</title><style>{STYLE}</style>"
        f"{places}</svg>\n"
    )


def machine():
    """Return what was measured on, and what."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    engine = run("docker", "version", "--format", "{{.Server.Version}}").split()[0]
    return f"{os.cpu_count()} CPUs ({cpu[1] if cpu else platform.machine()}), Docker {engine}, {' '.join(COMPOSE)}"


def main():
    """Measure, print the table, write results and picture."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: stopped"))
    for tool in ("docker", "wrk"):
        if not shutil.which(tool):
            raise Failed(f"{tool} is missing{': apt-get install wrk' * (tool == 'wrk')}")
    about = f"{'QUICK=1 ' * QUICK}make bench, {datetime.now():%Y-%m-%d}, {plural(RUNS, 'run')}, {machine()}"
    cluster = os.environ.get("KUBECONFIG")
    if not ROOT_USER:
        say("no memory, and requests by way of Docker's proxy: the rest needs root")
    if not cluster:
        say("no replicas of rng: KUBECONFIG names no cluster")
    try:
        down()
        compose("build")
        for number in range(RUNS):
            say(f"run {number + 1} of {RUNS}")
            measure_paced()
            measure_flat_out()
        measure_images()
    finally:
        down()
    trouble = None
    if cluster:
        say("cluster")
        try:
            measure_cluster()
        except Failed as error:  # what was measured before is not lost
            trouble = error
    results = {
        title: {"median": middle(title), "min": min(values), "max": max(values), "values": values}
        for title, values in figures.items()
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "results.json").write_text(json.dumps({"about": about, "figures": results}, indent=1) + "\n")
    (OUT / "results.md").write_text(table(about))
    (OUT / "rates.svg").write_text(picture())
    print(table(about))
    if trouble:
        raise trouble


COMPOSE = ("docker-compose",) if shutil.which("docker-compose") else ("docker", "compose")
if __name__ == "__main__":
    try:
        main()
    except (Failed, KeyboardInterrupt) as error:
        sys.exit(f"bench: {error or 'stopped'}")
