"""The commands of the workshop, with the images alone and on top of the manifests."""

import json
import subprocess
import time
from contextlib import contextmanager

import pytest
from support import wait_until
from support.cluster import SCALED, SERVICES, fetch, taint
from support.processes import free_port

IMAGES = {service: f"127.0.0.1:30500/dockercoins/{service}:v1.0" for service in SCALED}
IMAGES |= {"redis": "redis:8-alpine"}


def original(service):
    """Yield the objects of a service as in the manifest of the original workshop."""
    labels, port = {"app": service}, 6379 if service == "redis" else 80
    container = {"name": service, "image": IMAGES[service]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    yield "apps/v1", "Deployment", spec
    if service != "worker":
        ports = [{"port": port, "protocol": "TCP", "targetPort": port}]
        kind = {"type": "NodePort" if service == "webui" else "ClusterIP"}
        yield "v1", "Service", {"ports": ports, "selector": labels} | kind


def test_copy_made_by_hand_mines(by_hand):
    by_hand.scale(worker=1, rng=1)
    assert 3.1 <= by_hand.best_rate(3.1, 10) <= 3.34
    assert set(by_hand.restarts().values()) == {0}


def test_manifest_like_that_of_the_original_mines(app, make_copy):
    copy = make_copy("original")
    things = [
        {"apiVersion": version, "kind": kind, "spec": spec}
        | {"metadata": {"name": service, "labels": {"app": service}}}
        for service in SERVICES
        for version, kind, spec in original(service)
    ]
    manifest = {"apiVersion": "v1", "kind": "List", "items": things}
    copy.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    copy.settled()
    copy.mining(than=10)
    assert 3.1 <= copy.best_rate(3.1, 10) <= 3.34
    assert set(copy.restarts().values()) == {0}
    copy.remove()


def test_port_forward_to_the_deployment_on_port_80(app):
    port = free_port()
    command = ["kubectl", "port-forward", "deploy/webui", f"{port}:80"]
    with subprocess.Popen(command, env=app.environment(), stdout=subprocess.DEVNULL) as forward:
        try:
            page = wait_until(lambda: fetch(f"http://127.0.0.1:{port}/"), 20, "the page")
            assert b"<html" in page
        finally:
            forward.terminate()


def test_services_created_by_hand_reach_the_pods(app):
    app.kubectl("delete", "service", "webui")
    app.kubectl("create", "service", "nodeport", "webui", "--tcp=80")
    assert wait_until(lambda: b"<html" in fetch(app.url("/")), 10, "create service")
    app.kubectl("apply", "-f", "k8s/webui.yaml")
    app.kubectl("expose", "deployment", "webui", "--port", "80", "--name", "more")
    address = app.kubectl("get", "service", "more", "-o", "jsonpath={.spec.clusterIP}")
    assert wait_until(lambda: b"<html" in fetch(f"http://{address}/"), 10, "expose")
    app.kubectl("delete", "service", "more")


def test_liveness_probe_of_the_index_restarts_busy_rng_and_neither_hasher_nor_webui(app):
    def paste(service):
        # Not each second: while 15 workers start on two cores, a probe may be late twice.
        probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 3, "timeoutSeconds": 1}
        container = {"name": service, "livenessProbe": probe}
        pods = {"template": {"spec": {"containers": [container]}}}
        app.kubectl("patch", "deployment", service, "-p", json.dumps({"spec": pods}))

    others = "hasher", "webui"
    for service in others:
        paste(service)
    app.settled(*others)
    app.scale(worker=15, rng=1)  # rng's queue is longer than a probe waits
    paste("rng")
    wait_until(lambda: sum(app.restarts("rng").values()) >= 1, 90, "rng is restarted")
    assert set(app.restarts("hasher").values()) | set(app.restarts("webui").values()) == {0}
    for service in (*others, "rng"):
        app.kubectl("rollout", "undo", f"deployment/{service}")
    app.scale(worker=1)
    app.settled()


@contextmanager
def tainted():
    """The control plane with its taint."""
    taint()
    try:
        yield
    finally:
        taint(False)


def test_daemonset_made_from_the_exported_deployment_runs_on_each_node(app, rng_deployment):
    app.scale(worker=10, rng=1)
    with tainted():
        app.type(
            "kubectl get deploy rng -o yaml > /tmp/rng.yaml;"
            "sed -i 's/^kind: Deployment/kind: DaemonSet/; /^status:/,$d; /^  replicas:/d;"
            " /^  strategy:/,/^    type:/d' /tmp/rng.yaml;"
            "kubectl apply -f /tmp/rng.yaml --validate=false;"
            "kubectl delete deploy rng"
        )
        app.settled("rng", kind="daemonset")
        wait_until(lambda: app.nodes("rng") == ["node2"], 30, "one pod, on node 2")
    wait_until(lambda: app.nodes("rng") == ["node1", "node2"], 30, "a pod on each node")
    app.settled("rng", kind="daemonset")
    assert app.best_rate(15, 10) >= 15  # one rng can serve 10


def test_worker_without_rng_and_redis_for_two_minutes_is_not_restarted(second, alone):
    pod, since = alone
    wait_until(lambda: time.monotonic() > since + 120, 120, "two minutes")
    second.scale(rng=1, redis=1)
    second.mining()
    assert second.restarts("worker") == {pod: 0}


def test_restricted_namespace_runs_the_overlay_and_rejects_other_pods(second):
    second.mining(than=second.mining())
    assert set(second.restarts("worker").values()) == {0}
    with pytest.raises(AssertionError, match="restricted"):
        second.kubectl("run", "intruder", "--image=redis:8-alpine", "--dry-run=server")
