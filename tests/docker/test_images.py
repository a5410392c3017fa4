"""What the four images promise, however they are started."""

import json
import re
import time

import pytest
from support import wait_until
from support.engine import (
    NOBODY,
    OWN,
    ROOT,
    capabilities,
    docker,
    ids,
    image,
    inspect,
    logs,
    processes,
    web,
)

HTTP = OWN[:3]
NET_BIND_SERVICE = 1 << 10
STRICT = ["--sysctl=net.ipv4.ip_unprivileged_port_start=1024"]  # Docker's own default is 0
LOCKED = [
    *STRICT,
    "--security-opt=no-new-privileges",
    "--read-only",
    "--cap-drop=ALL",
    *("--cap-add=NET_BIND_SERVICE", "--cap-add=SETGID", "--cap-add=SETUID"),
]
IPV6 = ("--sysctl=net.ipv6.conf.all.disable_ipv6=0", "--sysctl=net.ipv6.conf.lo.disable_ipv6=0")
LOOPBACK = 'import urllib.request as u; print(u.urlopen("http://[::1]/healthz", timeout=5).status)'


UNPRIVILEGED = [
    *STRICT,
    "--user=65534",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--env=PORT=8080",
    "--expose=8080",
]


def url(container, port=80):
    """Return the address of a container's port as published by `docker run -P`."""
    first = docker("port", container, str(port)).splitlines()[0]  # the next is IPv6's, another one
    return "http://127.0.0.1:" + first.split(":")[-1]


def answers(service, container, port=80):
    """Assert that the service in a container does its work."""
    address = url(container, port)
    wait_until(lambda: web.get(f"{address}/healthz", timeout=2).ok, 10, f"{service} answers")
    if service == "rng":
        assert len(web.get(f"{address}/32", timeout=5).content) == 32
    elif service == "hasher":
        digest = web.post(address, data=b"abc", timeout=5).text
        assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    else:
        assert web.get(address, timeout=5).url == f"{address}/index.html"


@pytest.mark.parametrize("service", HTTP)
@pytest.mark.parametrize("options", [STRICT, LOCKED], ids=["default", "locked down"])
def test_run_publishes_port_80_and_no_process_is_root(start_image, service, options):
    container = start_image("-P", *options, image(service))
    answers(service, container)
    found = [process for process in processes(container) if process["Name"] != "sh"]
    assert len(found) >= 2, "gunicorn and its worker"
    for process in found:
        assert ids(process) == {NOBODY}
        assert int(process["CapEff"], 16) == NET_BIND_SERVICE
    if options is LOCKED:
        assert not int(found[0]["CapBnd"], 16) & ~0b10011000000, "more than the three capabilities"


@pytest.mark.parametrize(
    "options", [[], ["--read-only", "--cap-drop=ALL"]], ids=["default", "locked down"]
)
def test_worker_is_nobody_without_capabilities_and_retries_without_services(start_image, options):
    container = start_image(*options, image("worker"))
    wait_until(lambda: re.search("rng:80.*trying again", logs(container)), 10, "a log line")
    for process in processes(container):
        assert ids(process) == {NOBODY}
        assert capabilities(process) == 0 or not options
    began = time.monotonic()
    docker("stop", container)
    assert time.monotonic() - began < 3  # it may pause for 2 s before it tries again
    assert inspect(container, "{{.State.ExitCode}}") == "0"


@pytest.mark.parametrize("service", HTTP)
def test_image_runs_as_any_user_with_an_explicit_command(start_image, service):
    container = start_image("-P", "--user=1000", image(service), "gunicorn", f"{service}:app")
    answers(service, container)
    assert {process["Uid"].split()[0] for process in processes(container)} == {"1000"}


@pytest.mark.parametrize("service", HTTP)
def test_image_needs_no_privilege_on_another_port(start_image, service):
    container = start_image("-P", *UNPRIVILEGED, image(service), "gunicorn", f"{service}:app")
    answers(service, container, 8080)
    for process in processes(container):
        assert (ids(process), capabilities(process)) == ({NOBODY}, 0)
        assert process["NoNewPrivs"] == "1"


def test_answers_on_ipv6(start_image):
    for container in [start_image(*IPV6, image(service)) for service in HTTP]:
        ask = ("exec", container, "python", "-c", LOOPBACK)
        assert wait_until(lambda ask=ask: docker(*ask), 10, "an answer") == "200"


@pytest.mark.parametrize("without", ["address", "kernel"])
def test_starts_without_ipv6(start_image, tmp_path, without):
    options = ["--sysctl=net.ipv6.conf.all.disable_ipv6=1"]
    if without == "kernel":  # no socket of the family 10, AF_INET6
        rule = {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97}
        rule["args"] = [{"index": 0, "value": 10, "op": "SCMP_CMP_EQ"}]
        profile = tmp_path / "no-ipv6.json"
        profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
        options += [f"--security-opt=seccomp={profile}"]
    started = {service: start_image("-P", *options, image(service)) for service in HTTP}
    for service, container in started.items():
        answers(service, container)
        if without == "kernel":
            assert "http://0.0.0.0:80" in logs(container), "it listens on IPv6"


def test_stop_takes_less_than_2_seconds(start_image):
    started = {service: start_image("-P", image(service)) for service in HTTP}
    for service, container in started.items():
        answers(service, container)
    for container in started.values():
        began = time.monotonic()
        docker("stop", container)
        assert time.monotonic() - began < 2
        assert inspect(container, "{{.State.ExitCode}}") == "0"


@pytest.mark.parametrize("service", OWN)
def test_image_adds_at_most_30_mb(built, service):
    names = ("python:3.13-slim", image(service))
    base, own = (json.loads(docker("image", "inspect", name))[0] for name in names)
    layers = base["RootFS"]["Layers"]
    assert own["RootFS"]["Layers"][: len(layers)] == layers, "not built on python:3.13-slim"
    added = (own["Size"] - base["Size"]) / 1e6
    print(f"{service}: {added:.1f} MB added")
    assert added <= 30


def files(name):
    """Return the paths of all files in an image."""
    find = ("run", "--rm", "--network=none", "--user=0", "--entrypoint=find")
    return set(docker(*find, name, "/", "-xdev", "-type", "f").splitlines())


@pytest.mark.parametrize("service", OWN)
def test_image_adds_the_service_and_its_packages_and_nothing_else(built, service):
    added = files(image(service)) - files("python:3.13-slim")
    own = {f"{service}.py", "requirements.txt"} | (
        {"gunicorn.conf.py"} if service in HTTP else set()
    )
    page = {f"files/{each.name}" for each in (ROOT / service).glob("files/*")}
    app = {name for name in added if name.startswith("/app/")}
    assert {name.removeprefix("/app/") for name in app} == own | page
    packages = r"/usr/local/(bin|lib/python3[^/]*/[a-z]+-packages)/|/usr/.*include/.*/greenlet\.h$"
    assert [name for name in added - app if not re.match(packages, name)] == []
    assert [name for name in added if re.search(r"\.whl$|/\.cache/|/pip/", name)] == []


def test_names_that_are_not_found_are_given_up_after_2_s(built):
    for service in ("webui", "worker"):
        settings = docker("inspect", "--format", "{{.Config.Env}}", image(service))
        assert "RES_OPTIONS=timeout:1 attempts:2" in settings


@pytest.mark.parametrize("service", OWN)
def test_code_change_does_not_reinstall_packages(service):
    lines = (ROOT / service / "Dockerfile").read_text().splitlines()
    install = next(i for i, line in enumerate(lines) if "pip install" in line)
    copies = [i for i, line in enumerate(lines) if re.match(r"COPY (?!requirements)", line)]
    assert copies and min(copies) > install
    assert "--require-hashes" in lines[install]
