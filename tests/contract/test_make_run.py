"""`make run`, as typed: it mines, Ctrl-C ends it, and what is missing is said in one line before anything starts."""

import os
import signal
import socket
import subprocess
import time

import pytest
import requests
from support import wait_until
from support.processes import ROOT

ENV = {
    name: value for name, value in os.environ.items() if not name.startswith("MAKE")
}  # `make test` is not its parent


@pytest.fixture
def make_run():
    started = []

    def run(*words):
        process = subprocess.Popen(
            ["make", "run", *words], cwd=ROOT, env=ENV, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=20)


def session_of(pid):
    """Return the processes below `pid`, by name."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines()[1:]]
    below = {str(pid)}
    for _ in rows:
        below |= {row[0] for row in rows if row[1] in below}
    return {row[0]: row[2] for row in rows if row[0] in below}


def test_make_run_mines_with_as_many_workers_as_asked_for_and_ctrl_c_leaves_nothing(make_run):
    make = make_run("WORKERS=2")
    wait_until(lambda: int(requests.get("http://localhost:8000/json", timeout=1).json()["hashes"]) > 20, 15, "it mines")
    family = session_of(make.pid)
    start = time.monotonic()
    os.killpg(make.pid, signal.SIGINT)
    output, _ = make.communicate(timeout=10)
    assert time.monotonic() - start < 2
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family), 5, f"nothing is left of {family}")
    assert "stay uncounted" not in output
    assert "DockerCoins is at http://localhost:8000\n" in output
    assert {"worker.1", "worker.2"} <= {line.split("|")[0].split()[-1] for line in output.splitlines() if "|" in line}


@pytest.mark.parametrize("port", [8000, 8001, 8002, 8003])
def test_port_in_use_is_one_line_before_anything_starts(make_run, port):
    with socket.create_server(("127.0.0.1", port)):
        output, _ = make_run().communicate(timeout=20)
    assert output.splitlines()[0] == f"make: port {port} is in use: stop what listens there"
    assert "started" not in output


def test_too_old_python_is_one_line_before_anything_starts(make_run, tmp_path):
    (old := tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    output, _ = make_run(f"PYTHON={old}", "-o", ".venv/run.stamp", "check").communicate(timeout=20)
    assert "started" not in output
    assert make_run(f"PYTHON={tmp_path}/none", "check").communicate(timeout=20)[0].splitlines()[0].startswith(
        f"make: {tmp_path}/none is missing"
    )  # fmt: skip
