"""The application on a cluster, by the README's own commands, and a second copy beside it to do damage to."""

import os

import pytest
from support import wait_until
from support.cluster import COPIES, SERVICES, Copy, remove, run, wait_until_gone


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add to a failure how the copies of the application are at that moment."""
    report = yield
    if report.failed:
        for copy in COPIES:
            report.sections.append((copy.namespace, copy.report()))
    return report


def registry():
    """Return the phase of the registry's namespace, Active or Terminating; an empty text without one."""
    return run("kubectl", "get", "namespace", "registry", "--ignore-not-found", "-o", "jsonpath={.status.phase}")


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The application in a namespace of its own, put there by the four commands of the README as they stand."""
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG must name the configuration of a cluster to test on")
    wait_until(lambda: registry() != "Terminating", "an earlier registry gone", timeout=150)
    here_before = registry()
    copy = Copy(f"dockercoins-{os.getpid()}", tmp_path_factory.mktemp("kube") / "config")
    try:
        copy.kubectl("apply", "-f", "k8s/registry/")
        run("docker-compose", "build", timeout=300)
        run("kubectl", "-n", "registry", "rollout", "status", "deployment/registry", "--timeout=60s")  # see the README
        run("docker-compose", "push")
        copy.kubectl("apply", "-f", "k8s/")
        for service in SERVICES:
            copy.settled(service)
        copy.mining()
        yield copy
    finally:
        copy.remove()
        if not here_before:
            remove("registry")
        wait_until_gone()


@pytest.fixture(scope="session")
def second(app, tmp_path_factory):
    """A second copy of the application, in another namespace at the same time: what is done to it takes a while."""
    copy = Copy(f"dockercoins-{os.getpid()}-second", tmp_path_factory.mktemp("kube") / "config")
    try:
        copy.kubectl("apply", "-f", "k8s/")
        for service in SERVICES:
            copy.settled(service)
        copy.mining()
        yield copy
    finally:
        copy.remove()
