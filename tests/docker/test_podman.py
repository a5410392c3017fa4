"""`podman-compose up`, with images and settings apart from those of the machine."""

import json
import subprocess

import pytest
from support import wait_until
from support.engine import DOCKER, ENV, OWN, grows, image, run, state

# What Podman lacks on a machine without systemd, or inside a container.
SETTINGS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{0}/networks"
"""
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/root"\nrunroot = "{0}/run"\n'


@pytest.fixture
def podman(built, need, tmp_path):
    """A function that runs a command with Podman's images and settings in a temporary folder."""
    tools = ("/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns")  # network and DNS
    need("podman", "podman-compose", "runc", *tools)
    built.down()  # its ports are needed
    for name, text in ("containers", SETTINGS), ("storage", STORAGE):
        (tmp_path / f"{name}.conf").write_text(text.format(tmp_path))
    env = {
        "CONTAINERS_CONF": f"{tmp_path}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{tmp_path}/storage.conf",
    }
    save = (DOCKER, "save", "redis:8-alpine", *map(image, OWN))
    with subprocess.Popen(save, stdout=subprocess.PIPE) as images:
        load = ("podman", "load", "-q")
        subprocess.run(load, stdin=images.stdout, env=ENV | env, check=True, timeout=90)
    yield lambda *command: run(*command, env=env)
    run("podman-compose", "down", "-v", "-t", "5", env=env)
    run("podman", "system", "reset", "--force", env=env)


def test_podman_compose_up_mines(podman):
    podman("podman-compose", "up", "-d")
    wait_until(lambda: state()["hashes"], 20, "the first hash is counted")
    grows(5, "under Podman")
    for container in json.loads(podman("podman", "ps", "--format", "json")):
        user = podman("podman", "top", container["Id"], "user").split()[1:]
        assert "root" not in user, container["Names"]
