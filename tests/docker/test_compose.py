"""The Compose file with each version of Compose that is in use."""

import pytest
import yaml
from support import wait_until
from support.engine import (
    CI,
    COMPOSES,
    DOCKER,
    OWN,
    App,
    docker,
    grows,
    image,
    run,
    state,
    web,
    works,
)

STACK = "dockercoinsteststack"
DELAYS = {"rng": "RNG_DELAY", "hasher": "HASHER_DELAY", "worker": "WORKER_DELAY"}


@pytest.fixture(params=COMPOSES)
def compose(request, composes, built):
    """One version of Compose, with nothing running."""
    if request.param not in composes:
        (pytest.fail if CI else pytest.skip)(f"{request.param} is not installed")
    built.down()
    app = App(composes[request.param])
    yield app
    app.down()


def services(app, **env):
    """Return the services of the Compose file as this version reads them."""
    return yaml.safe_load(app.compose("config", env=env))["services"]


def test_up_mines_and_scales_and_down_removes_everything(compose):
    compose.compose("up", "-d")
    wait_until(lambda: state()["hashes"], 20, "the first hash is counted")
    assert web.get("http://localhost:8001/").text.startswith("RNG running on ")
    compose.compose("up", "-d", "--scale", "worker=3")
    assert len(compose.containers("worker")) == 3
    grows(10, "with three workers")
    assert "units of work done, updating hash counter" in compose.compose("logs")
    assert all(service in compose.compose("ps") for service in OWN)
    compose.compose("down", "-v")
    assert not any(compose.containers(service) for service in OWN)


def test_settings_registry_and_tag_come_from_the_shell(compose):
    default = services(compose)
    for name, setting in DELAYS.items():
        assert default[name]["environment"][setting] == "0.1"
    assert {name: default[name]["image"] for name in OWN} == {name: image(name) for name in OWN}
    env = {"RNG_DELAY": "0.2", "HASHER_DELAY": "0.3", "WORKER_DELAY": "0.4", "DEBUG": "y"}
    found = services(compose, REGISTRY="registry.example/class", TAG="v2", **env)
    assert found["rng"]["image"] == "registry.example/class/rng:v2"
    assert found["rng"]["environment"] == {"RNG_DELAY": "0.2"}
    assert found["hasher"]["environment"] == {"HASHER_DELAY": "0.3"}
    assert found["worker"]["environment"] == {"WORKER_DELAY": "0.4", "DEBUG": "y"}
    unset = services(compose, REGISTRY="", TAG="")
    assert unset["rng"]["image"] == "127.0.0.1:30500/dockercoins/rng:v1.0"


@pytest.fixture
def swarm(built):
    """A swarm of this engine alone, which is removed afterwards."""
    if docker("info", "--format", "{{.Swarm.LocalNodeState}}") != "inactive":
        pytest.fail("this engine is already in a swarm")
    built.down()
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    yield
    docker("swarm", "leave", "--force")
    wait_until(lambda: not docker("ps", "-aq", f"--filter=name={STACK}"), 60, "containers removed")
    docker("volume", "rm", "-f", f"{STACK}_redis")
    wait_until(lambda: works(DOCKER, "network", "rm", "docker_gwbridge"), 20, "network removed")


def test_stack_deploy_runs_every_service(swarm):
    file = ("-c", "docker-compose.yml")
    run(DOCKER, "stack", "deploy", "--resolve-image", "never", *file, STACK, timeout=60)
    ask = ("stack", "services", STACK, "--format", "{{.Replicas}}")
    wait_until(lambda: docker(*ask).split() == ["1/1"] * 5, 60, "five services with 1/1 replicas")
