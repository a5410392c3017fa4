"""The network policies: each pod tries to connect to every other one, also on an unused port."""

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import wait_until
from support.cluster import NODES, SCALED, address_of, fetch, only, processes

ALLOWED = {("worker", "rng"), ("worker", "hasher"), ("worker", "redis"), ("webui", "redis")}
ALLOWED |= {(service, dns) for service in ("worker", "webui") for dns in ("dns", "dns by UDP")}
UNUSED = 81  # a port that no pod listens on and no policy allows
CONNECT = r"""
import socket, sys
from concurrent.futures import ThreadPoolExecutor
QUERY = b"\0\1\1\0\0\1\0\0\0\0\0\0\nkubernetes\7default\3svc\7cluster\5local\0\0\1\0\1"
def reaches(target):
    kind, host, port = target.split(":")
    try:
        with socket.socket(type=getattr(socket, kind)) as sock:
            sock.settimeout(2.5)
            sock.connect((host, int(port)))
            if kind == "SOCK_DGRAM":
                sock.send(QUERY)
                sock.recv(512)
    except ConnectionRefusedError:
        return port == "81"  # UNUSED: refused by the pod itself, as policies drop packets
    except OSError:
        return False
    return True
with ThreadPoolExecutor(100) as pool:
    print(*map(int, pool.map(reaches, sys.argv[1:])))
"""


class End:
    """A pod (of the service "foreign" if in another namespace) or an address outside."""

    def __init__(self, service, pod=None, address=None, kind="SOCK_STREAM"):
        self.service, self.pod, self.address, self.name = service, pod, address, service
        self.kind = kind
        if pod:
            self.address = pod["status"]["podIP"], 6379 if service == "redis" else 80
            self.name = f"{service} on {pod['spec']['nodeName']}, {pod['metadata']['name']}"

    def unused_port(self):
        """Return the same pod's unused port."""
        port = End("foreign" if self.service == "foreign" else "unused port", self.pod)
        port.address, port.name = (self.address[0], UNUSED), f"unused port of {self.name}"
        return port

    def others(self, targets):
        """Return the `targets` that are not this pod."""
        return [end for end in targets if end.address[0] != self.address[0]]

    def reaches(self, targets):
        """Return the names of those `targets` which packets of this pod reach."""
        others = self.others(targets)
        command = ["nsenter", "-t", processes(self.pod)[0]["Pid"], "-n", "python3", "-c", CONNECT]
        command += [f"{end.kind}:{end.address[0]}:{end.address[1]}" for end in others]
        output = subprocess.check_output(command, text=True, timeout=60).split()
        return {end.name for end, answer in zip(others, output, strict=True) if answer == "1"}

    def may_reach(self, target):
        """Return whether the policies allow it."""
        if self.service == "foreign":
            return target.service in ("foreign", "webui", "dns", "dns by UDP", "internet")
        return (self.service, target.service) in ALLOWED


@pytest.fixture(scope="module")
def fenced(app, two_nodes, by_hand):
    """The copy made by hand plus an unknown pod, and a function returning sources and targets."""
    image = "--image=127.0.0.1:30500/dockercoins/rng:v1.0"
    by_hand.kubectl("create", "deployment", "stranger", image)
    by_hand.spread(rng=1, hasher=1, webui=1, worker=1, stranger=1)
    app.spread(rng=1, worker=1)  # the same labels in another namespace

    # A server outside the cluster: no policy keeps a pod from connecting to its own node.
    with socket.socket(type=socket.SOCK_DGRAM) as here:
        here.connect((address_of("node1"), 9))
        internet = socket.create_server((here.getsockname()[0], 0))
    dns = "10.96.0.10", 53  # kubeadm's address
    outside = [End("dns", address=dns), End("dns by UDP", address=dns, kind="SOCK_DGRAM")]
    outside += [End("internet", address=internet.getsockname())]

    def ends():
        pods = [End(pod["metadata"]["labels"]["app"], pod) for pod in by_hand.pods()]
        pods += [End("foreign", pod) for pod in app.pods("rng") + app.pods("worker")]
        serving = [end for end in pods if serves(end)]
        return pods, serving + [end.unused_port() for end in pods] + outside

    with internet:
        yield by_hand, ends


def serves(end):
    """Return whether a pod listens on a port: workers do not."""
    return end.pod["metadata"]["labels"]["app"] != "worker"


def seen(sources, targets):
    """Return what each source reaches: {name: names}."""
    with ThreadPoolExecutor(8) as pool:
        reached = list(pool.map(lambda end: end.reaches(targets), sources))
    return {end.name: names for end, names in zip(sources, reached, strict=True)}


def allowed(sources, targets):
    """Return what each source may reach: {name: names}."""
    return {
        source.name: {target.name for target in source.others(targets) if source.may_reach(target)}
        for source in sources
    }


def test_without_policies_everything_is_reachable(fenced):
    _, ends = fenced
    sources, targets = ends()
    everything = {source.name: {end.name for end in source.others(targets)} for source in sources}
    assert seen(sources, targets) == everything


def test_existing_pods_reach_what_the_policies_allow_and_nothing_else(fenced):
    copy, ends = fenced
    copy.kubectl("apply", "-f", "k8s/network-policies/")
    stranger = next(end for end in ends()[0] if end.service == "stranger")
    wait_until(lambda: not stranger.reaches(ends()[1]), 10, "the policies take effect")
    sources, targets = ends()
    assert seen(sources, targets) == allowed(sources, targets)


def test_new_pods_reach_what_the_policies_allow_and_nothing_else(fenced):
    copy, ends = fenced
    for count, node in enumerate(NODES, 3):  # one more of each on each node
        with only(node):
            copy.scale(**dict.fromkeys((*SCALED, "stranger"), count))
    sources, targets = ends()
    assert len(sources) == 5 * 4 + 1 + 4
    assert seen(sources, targets) == allowed(sources, targets)


def test_mining_continues_and_the_page_is_reachable_from_outside(fenced):
    copy, _ = fenced
    copy.mining(than=copy.mining() + 10)
    assert all(b"<html" in fetch(copy.url("/", node)) for node in NODES)
    assert set(copy.restarts().values()) == {0}
