"""Prometheus beside the application: its metrics, its alerts, its network policies."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from urllib.parse import urlencode, urlsplit

import pytest
from support import wait_until
from support.cluster import NODES, fetch, processes, run

PODS = ("prometheus", "blackbox-exporter", "redis-exporter")
PORTS = dict(zip(PODS, (9090, 9115, 9121), strict=True)) | {"redis": 6379, "dns": 53}
ALLOWED = {("prometheus", "blackbox-exporter"), ("prometheus", "redis-exporter")}
ALLOWED |= {("blackbox-exporter", "rng"), ("blackbox-exporter", "hasher")}
ALLOWED |= {("redis-exporter", "redis"), ("worker", "redis"), ("webui", "redis")}
ALLOWED |= {("worker", "rng"), ("worker", "hasher")}
ALLOWED |= {(each, "dns") for each in (*PODS, "worker", "webui")}
ALLOWED |= {("foreign", each) for each in ("prometheus", "webui", "dns")}  # of another namespace
# The tests apply the manifests with the image releases that the nodes have.
OLDER = "s/prometheus:v3.*/prometheus:v2.53.3/; s/exporter:v0.*/exporter:v0.26.0/; "
OLDER += "s/exporter:v1.*/exporter:v1.69.0/; $a ---"
SPEED = 'sum(rate(redis_key_value{key="hashes"}[30s]))'


class Prometheus:
    """Prometheus in the namespace of a copy of the application."""

    def __init__(self, copy):
        self.copy = copy
        files = run("bash", "-c", f"sed -s '{OLDER}' k8s/prometheus/*.yaml")
        copy.kubectl("apply", "-f", "-", stdin=files)
        copy.settled(*PODS)
        port = copy.get("service", "prometheus")["spec"]["ports"][0]["nodePort"]
        self.urls = [f"http://{urlsplit(copy.url('', node)).hostname}:{port}" for node in NODES]

    def get(self, path, **query):
        """Return the data of an answer of the HTTP API."""
        return json.loads(fetch(f"{self.urls[0]}/api/v1/{path}?{urlencode(query)}"))["data"]

    def values(self, query, **options):
        """Return the results of a query, {instance: value}."""
        found = self.get("query", query=query, **options)["result"]
        return {each["metric"].get("instance"): float(each["value"][1]) for each in found}

    def value(self, query):
        """Return the only value in the results of a query."""
        (value,) = self.values(query).values()
        return value

    def alerts(self):
        """Return the names of the alerts that are firing."""
        alerts = self.get("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


@pytest.fixture(scope="module")
def prometheus(app, two_nodes, make_copy):
    """Prometheus and a copy of the application in a namespace that enforces "restricted"."""
    build = ("kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone")
    copy = make_copy("prometheus", enforce="restricted")
    copy.kubectl("apply", "-f", "-", stdin=run(*build, "k8s/restricted"))
    copy.settled()
    yield Prometheus(copy)
    copy.remove()


def test_restricted_profile_admits_prometheus_and_all_targets_are_up(prometheus):
    up = {"redis-exporter:9121": 1, "rng": 1, "hasher": 1}
    wait_until(lambda: prometheus.values("up") == up, 30, "all targets are up")
    wait_until(lambda: prometheus.value('redis_key_size{key="wallet"}') > 0, 30, "a coin")


def test_mining_alert_is_true_without_a_counter(prometheus):
    rules = prometheus.get("rules")["groups"][0]["rules"]
    (query,) = [each["query"] for each in rules if each["name"] == "MiningHasStopped"]
    assert prometheus.values(query, time=1) == {None: 0}  # there was no counter in 1970


def test_ten_workers_raise_the_speed_and_the_response_time_of_rng_only(prometheus):
    prometheus.copy.scale(worker=10)
    counted = prometheus.copy.rate(20)
    about = pytest.approx(counted, rel=0.05)
    wait_until(lambda: prometheus.value(SPEED) == about, 15, f"{counted} hashes/s")
    times = prometheus.values("avg_over_time(probe_duration_seconds[20s])")
    assert 0.6 < times["rng"] < 0.9
    assert times["hasher"] < 0.05
    wait_until(lambda: prometheus.alerts() == {"RngQueueIsLong"}, 30, "the alert fires")


def test_more_replicas_of_rng_shorten_its_response_time_and_resolve_the_alert(prometheus):
    prometheus.copy.scale(rng=5)
    time = 'avg_over_time(probe_duration_seconds{instance="rng"}[20s])'
    wait_until(lambda: prometheus.value(time) < 0.3, 60, "rng answers faster")
    wait_until(lambda: not prometheus.alerts(), 15, "the alert is resolved")


def connects(pod, address, port):
    """Return whether a process of a pod can connect to an address, within 2.5 s."""
    command = ["nsenter", "-t", processes(pod)[0]["Pid"], "-n", "timeout", "2.5", "bash", "-c"]
    command += [f"exec 3<> /dev/tcp/{address}/{port}"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def test_policies_allow_what_each_pod_needs_and_nothing_else(prometheus, app):
    prometheus.copy.kubectl("apply", "-f", "k8s/network-policies/")
    pods = {pod["metadata"]["labels"]["app"]: pod for pod in prometheus.copy.pods()}
    addresses = {name: pod["status"]["podIP"] for name, pod in pods.items() if name != "worker"}
    addresses["dns"] = "10.96.0.10"  # kubeadm's
    pods["foreign"] = app.pods("worker")[0]
    pairs = [pair for pair in product(pods, addresses) if pair[0] != pair[1]]

    def reached():
        with ThreadPoolExecutor(32) as pool:
            answers = [
                pool.submit(connects, pods[source], addresses[target], PORTS.get(target, 80))
                for source, target in pairs
            ]
        return {pair for pair, answer in zip(pairs, answers, strict=True) if answer.result()}

    wait_until(lambda: reached() == ALLOWED, 20, "the policies take effect")
    assert reached() == ALLOWED


def test_all_targets_and_the_page_are_reachable_with_the_policies(prometheus):
    healthy = "min(up) + min(probe_success) + min(redis_up)"
    wait_until(lambda: prometheus.value(healthy) == 3, 20, "all targets answer")
    assert all(b"Prometheus" in fetch(f"{url}/") for url in prometheus.urls)


def test_mining_alert_fires_without_hasher_and_is_resolved_afterwards(prometheus):
    prometheus.copy.scale(hasher=0)
    wait_until(lambda: "MiningHasStopped" in prometheus.alerts(), 60, "the alert fires")
    prometheus.copy.scale(hasher=1)
    wait_until(lambda: "MiningHasStopped" not in prometheus.alerts(), 30, "it is resolved")
