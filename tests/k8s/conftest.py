"""The application on a cluster, by the README's own commands, and a second copy beside it to do damage to."""

import os
import subprocess

import pytest
from cluster import REMOVED, SERVICES, Copy, fetch, run, wait_until, wait_until_gone


def registry_answers():
    """Tell whether the registry can be reached where docker-compose pushes to."""
    try:
        return fetch("http://127.0.0.1:30500/v2/")
    except OSError:
        return False


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The application in a namespace of its own, put there by the four commands of the README as they stand."""
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG must name the configuration of a cluster to test on")
    here_before = subprocess.run(["kubectl", "get", "namespace", "registry"], capture_output=True).returncode == 0
    copy = Copy(f"dockercoins-{os.getpid()}", tmp_path_factory.mktemp("kube") / "config")
    try:
        copy.kubectl("apply", "-f", "k8s/registry/")
        run("docker-compose", "build", timeout=300)
        wait_until(registry_answers, "registry ready")  # when all is built already, it may need a moment
        run("docker-compose", "push")
        copy.kubectl("apply", "-f", "k8s/")
        for service in SERVICES:
            copy.settled(service)
        copy.mining()
        yield copy
    finally:
        copy.remove()
        if not here_before:
            run("kubectl", "delete", "namespace", "registry", "--wait=false")
            REMOVED.append("registry")
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
