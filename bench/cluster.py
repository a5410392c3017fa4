"""Measures DockerCoins on the cluster that KUBECONFIG names."""

import os
import time
from pathlib import Path

from measure import COMPOSE, rate, run, wait_until

ROOT = Path(__file__).parents[1]
NAMESPACE = f"dockercoins-bench-{os.getpid()}"
REGISTRY = "127.0.0.1:30500/dockercoins"


def kubectl(*args):
    """Run kubectl in the benchmark's namespace."""
    return run("kubectl", "-n", NAMESPACE, *args)


def scale(name, replicas):
    """Scale a Deployment; return the seconds until it has exactly `replicas` pods, all ready."""
    begun, label = time.monotonic(), f"app={name}"
    kubectl("scale", "deployment", name, f"--replicas={replicas}")
    kubectl("rollout", "status", "deployment", name, "--timeout=120s")
    command = "get", "pods", "-l", label, "-o", "name"
    wait_until(lambda: len(kubectl(*command).split()) == replicas, 150, f"{replicas} {name}")
    return time.monotonic() - begun


def measure_cluster(note, runs):
    """Record how long scaling takes, and the rates with one and more rng."""
    tag = f"bench-{os.getpid()}"  # a new one, as nodes keep the images that they have
    names = {"REGISTRY": REGISTRY, "TAG": tag}
    run("kubectl", "apply", "-f", f"{ROOT}/k8s/registry/")
    run("kubectl", "-n", "registry", "rollout", "status", "deployment", "registry")
    for command in "build", "push":
        run(*COMPOSE, command, folder=ROOT, **names)
    run("kubectl", "create", "namespace", NAMESPACE)
    try:
        kubectl("apply", "-f", f"{ROOT}/k8s/")
        for name in ("rng", "hasher", "webui", "worker"):
            kubectl("set", "image", f"deployment/{name}", f"{name}={REGISTRY}/{name}:{tag}")
        for name in ("rng", "hasher", "webui", "worker", "redis"):
            scale(name, 1)
        node = kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.addresses[0].address}")
        port = kubectl("get", "service", "webui", "-o", "jsonpath={.spec.ports[0].nodePort}")
        webui = f"{node}:{port}"
        for _ in range(runs):
            note("kubectl scale from 1 to 10 workers, s", scale("worker", 10))
            for replicas in (1, 2, 5):
                scale("rng", replicas)
                rate(webui, seconds=2)  # until the requests queued at one rng are done
                title = f"Kubernetes, 10 workers, {replicas} rng, hashes/s"
                note(title, rate(webui))
            scale("rng", 1)
            note("kubectl scale from 10 to 1 worker, s", scale("worker", 1))
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")
