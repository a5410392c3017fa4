"""The application on a cluster of two nodes, deployed from node 1, and more copies of it."""

import os
import time

import pytest
from support import wait_until
from support.cluster import COPIES, ROOT, Copy, forget_images, run, taint

RESTRICTED = "kustomize", "--load-restrictor", "LoadRestrictionsNone", "k8s/restricted"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add the state of all copies of the application to the report of a failure."""
    report = yield
    if report.failed:
        for copy in COPIES:
            report.sections.append((copy.namespace, copy.report()))
    return report


@pytest.fixture(scope="session")
def make_copy(tmp_path_factory):
    """A function that makes an empty namespace for a copy; at the end all are being deleted."""
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG must name the configuration of a cluster to test on")
    made = []

    def make(name, enforce="privileged"):
        folder = tmp_path_factory.mktemp("kube")
        made.append(Copy(f"{name}-{os.getpid()}", folder / "config", enforce))
        return made[-1]

    yield make
    for copy in set(COPIES) & set(made):
        copy.remove()
    run("kubectl", "delete", "namespace", "registry", "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="session")
def app(make_copy, tmp_path_factory):
    """The application, deployed on node 1: clone, build, push, apply.

    Its namespace enforces the Pod Security profile "baseline".
    """
    copy = make_copy("dockercoins", enforce="baseline")
    taint()
    bare = tmp_path_factory.mktemp("clone") / "dockercoins.git"  # with uncommitted changes
    git = f"git --git-dir={bare} --work-tree={ROOT}"
    author = "-c user.name=test -c user.email=test@localhost -c core.hooksPath=/dev/null"
    commit = f"{git} init -q && {git} add -A && {git} {author} commit -qm here"
    run("bash", "-ec", f"{commit} && docker exec node1 rm -rf dockercoins dockercoins.git")
    run("docker", "cp", str(bare), "node1:/root/")
    copy.type("git clone -q dockercoins.git dockercoins", folder="/root")
    registry = ["kubectl", "get", "namespace", "registry", "--ignore-not-found"]
    wait_until(lambda: "Terminating" not in run(*registry), 150, "an earlier registry is gone")
    copy.type("kubectl apply -f k8s/registry/")
    copy.type("docker-compose build", timeout=400)
    copy.type("kubectl -n registry rollout status deployment registry --timeout=60s")
    copy.type("docker-compose push", timeout=200)
    forget_images()
    copy.type("kubectl apply -f k8s/")
    copy.settled()
    copy.mining()
    return copy


@pytest.fixture(scope="session")
def two_nodes(app):
    """Let pods run on the control plane, too."""
    taint(False)
    yield
    taint()


@pytest.fixture
def rng_deployment(app, two_nodes):
    """Restore the Deployment of rng after a test has replaced it with a DaemonSet."""
    yield
    app.kubectl("apply", "-f", "k8s/rng.yaml")
    app.settled("rng")
    app.kubectl("delete", "daemonset", "rng", "--ignore-not-found")


@pytest.fixture(scope="session")
def second(app, two_nodes, make_copy):
    """A copy for destructive tests, in a namespace that enforces "restricted"."""
    copy = make_copy("second", enforce="restricted")
    copy.kubectl("apply", "-f", "-", stdin=copy.kubectl(*RESTRICTED))
    copy.settled()
    copy.mining()
    return copy


@pytest.fixture(scope="session")
def alone(second):
    """The pod of a worker of that copy, and when its rng and redis were removed."""
    second.scale(worker=1, rng=0, redis=0)
    return second.names("worker").pop(), time.monotonic()


@pytest.fixture(scope="session")
def by_hand(app, two_nodes, make_copy):
    """A copy created by kubectl commands only, as in the workshop."""
    copy = make_copy("by-hand")
    copy.kubectl("create", "deployment", "redis", "--image=redis:8-alpine")
    for service in ("hasher", "rng", "webui", "worker"):
        image = f"127.0.0.1:30500/dockercoins/{service}:v1.0"
        copy.kubectl("create", "deployment", service, f"--image={image}")
    copy.kubectl("expose", "deployment", "redis", "--port", "6379")
    copy.kubectl("expose", "deployment", "rng", "--port", "80")
    copy.kubectl("expose", "deployment", "hasher", "--port", "80")
    copy.kubectl("expose", "deployment", "webui", "--type=NodePort", "--port=80")
    copy.settled()
    copy.mining()
    return copy
