"""What the four images promise, whoever starts them."""

import json
import re
import shutil
import subprocess
import time

import pytest
import requests
from support import wait_until
from support.engine import CI, NOBODY, OWN, ROOT, capabilities, docker, ids, image, inspect, logs, processes, web

STRICT = ("--sysctl", "net.ipv4.ip_unprivileged_port_start=1024")  # as in a pod: no port below 1024 without privileges
UNPRIVILEGED = ("--user", str(NOBODY), "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
HTTP = ("rng", "hasher", "webui")
CODE = {
    "rng": {"rng.py", "gunicorn.conf.py"},
    "hasher": {"hasher.py", "gunicorn.conf.py"},
    "webui": {"webui.py", "state.lua", "gunicorn.conf.py"},
    "worker": {"worker.py", "services.py", "settings.py", "count.lua"},
}


def files(name):
    """Return the paths of all files in an image."""
    run = ("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "find")
    return set(docker(*run, name, "/", "-xdev", "-type", "f").splitlines())


def address(container, port):
    """Return the URL at which the host reaches `port` of a container."""
    return "http://" + docker("port", container, str(port)).splitlines()[0]


def answers(service, url):
    """Check that the service does its work at `url`."""

    def healthy():
        try:
            return web.get(f"{url}/healthz", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    wait_until(healthy, 10, f"{service} answers")
    if service == "rng":
        assert len(web.get(f"{url}/32", timeout=5).content) == 32
    elif service == "hasher":
        sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert web.post(f"{url}/", data=b"abc", timeout=5).text == sha256
    else:
        assert web.get(f"{url}/", timeout=5).url == f"{url}/index.html"
        assert "uPlot" in web.get(f"{url}/uplot/uPlot.iife.min.js", timeout=5).text


@pytest.mark.parametrize("service", HTTP)
def test_image_without_settings_serves_port_80_as_nobody(start_image, service):
    container = start_image(*STRICT, "-p", "127.0.0.1::80", image(service))
    answers(service, address(container, 80))
    serving = [process for process in processes(container) if process["PPid"] == "1"]
    assert serving
    for process in serving:
        assert ids(process) == {NOBODY}
        assert int(process["CapEff"], 16) == 0


@pytest.mark.parametrize("service", HTTP)
def test_image_works_without_any_privilege_on_another_port(start_image, service):
    container = start_image(*STRICT, *UNPRIVILEGED, "-e", "PORT=8080", "-p", "127.0.0.1::8080", image(service))
    answers(service, address(container, 8080))
    for process in processes(container):
        assert ids(process) == {NOBODY}
        assert capabilities(process) == 0
        assert process["NoNewPrivs"] == "1"


@pytest.mark.parametrize("args", [(), UNPRIVILEGED], ids=["default", "unprivileged"])
def test_worker_image_is_nobody_and_keeps_trying_alone(start_image, args):
    container = start_image(*args, image("worker"))
    wait_until(lambda: "trying again" in logs(container), 10, "the worker says that it has no rng")
    assert all(ids(process) == {NOBODY} for process in processes(container))
    began = time.monotonic()
    docker("stop", container)
    assert time.monotonic() - began < 2
    assert inspect(container, "{{.State.ExitCode}}") == "0"


@pytest.mark.parametrize("service", HTTP)
def test_image_started_as_root_stops_within_2_seconds(start_image, service):
    container = start_image("-p", "127.0.0.1::80", image(service))
    answers(service, address(container, 80))
    began = time.monotonic()
    docker("stop", container)
    assert time.monotonic() - began < 2
    assert inspect(container, "{{.State.ExitCode}}") == "0"


@pytest.mark.parametrize("service", OWN)
def test_image_adds_at_most_25_mb(built, service):
    base, own = (json.loads(docker("image", "inspect", name))[0] for name in ("python:3.13-slim", image(service)))
    layers = base["RootFS"]["Layers"]
    assert own["RootFS"]["Layers"][: len(layers)] == layers, "not built on python:3.13-slim"
    added = (own["Size"] - base["Size"]) / 1e6
    print(f"{service}: {added:.1f} MB added")
    assert added <= 25


@pytest.mark.parametrize("service", OWN)
def test_image_adds_the_service_and_its_packages_and_nothing_else(built, service):
    added = files(image(service)) - files("python:3.13-slim")
    own = {name.removeprefix("/app/") for name in added if name.startswith("/app/")}
    assets = {name for name in own if name.startswith(("files/", "node_modules/uplot/dist/"))}
    assert own - assets == CODE[service] | {"requirements.txt"}
    assert bool(assets) == (service == "webui")
    rest = {name for name in added if not name.startswith("/app/") and "/__pycache__/" not in name}
    packages = r"/usr/local/(bin|lib/python3[^/]*/[a-z]+-packages)/|/usr/.*include/.*/greenlet\.h$"
    assert [name for name in rest if not re.match(packages, name)] == []
    assert [name for name in added if re.search(r"/(tests?|testing)/|\.whl$|/\.cache/", name)] == []
    assert [name for name in added if "/pip/" in name] == [], "pip's own bytecode, which nobody runs again"


@pytest.mark.parametrize("service", OWN)
def test_code_change_does_not_install_again(built, service):
    lines = (ROOT / service / "Dockerfile").read_text().splitlines()
    install = next(i for i, line in enumerate(lines) if "pip install" in line)
    copies = [
        i for i, line in enumerate(lines) if line.startswith("COPY") and (f"{service}.py" in line or "files" in line)
    ]
    assert copies and min(copies) > install
    assert "--require-hashes" in lines[install]


@pytest.mark.parametrize("service", OWN)
def test_hadolint_finds_nothing(service):
    hadolint = shutil.which("hadolint")
    if not hadolint and not CI:
        pytest.skip("hadolint is not installed")
    assert hadolint, "hadolint is not installed"
    command = [hadolint, "--no-color", str(ROOT / service / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "")
