"""`make run`: it mines, Ctrl-C stops it, and it reports a missing requirement in one line."""

import os
import signal
import socket
import subprocess
import time

import pytest
import requests
from support import wait_until
from support.processes import ROOT

# Without the variables that `make test` sets for a make that it runs.
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


@pytest.fixture
def make_run():
    """A function that starts `make run`; afterwards Ctrl-C stops what is still running."""
    started = []

    def run(*words, cwd=ROOT):
        started.append(
            subprocess.Popen(
                ["make", "run", *words],
                cwd=cwd,
                env=ENV,
                text=True,
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=20)


def family(pid):
    """Return the processes that descend from `pid`, and itself."""
    table = subprocess.check_output(["ps", "-eo", "pid=,ppid="], text=True)
    rows, found = [line.split() for line in table.splitlines()], {str(pid)}
    while more := {child for child, parent in rows if parent in found} - found:
        found |= more
    return found


def test_make_run_in_a_clone_mines_and_ctrl_c_stops_every_process(make_run, tmp_path):
    git = ["git", "-c", "safe.directory=*"]
    subprocess.run([*git, "clone", "-q", ROOT, tmp_path / "clone"], check=True, timeout=30)
    # Use the packages of this clone instead of installing them again.
    (tmp_path / "clone/.venv").symlink_to(ROOT / ".venv")
    subprocess.run(["touch", ROOT / ".venv/run.stamp", ROOT / ".venv/test.stamp"], check=True)
    make = make_run("WORKERS=2", cwd=tmp_path / "clone")
    numbers = "http://localhost:8000/json"
    mined = lambda: int(requests.get(numbers, timeout=1).json()["hashes"] or 0)  # noqa: E731
    wait_until(lambda: mined() > 20, 15, "it mines")
    processes = family(make.pid)
    assert len(processes) > 9  # make, honcho, the six of the Procfile and gunicorn's workers
    start = time.monotonic()
    os.killpg(make.pid, signal.SIGINT)
    output, _ = make.communicate(timeout=10)
    assert time.monotonic() - start < 2
    left = lambda: [pid for pid in processes if os.path.exists(f"/proc/{pid}")]  # noqa: E731
    wait_until(lambda: not left(), 5, "every process has ended")
    assert "DockerCoins is at http://localhost:8000\n" in output
    assert {"worker.1", "worker.2"} <= {
        line.split("|")[0].split()[-1] for line in output.split("\n") if "|" in line
    }
    assert not [word for word in ("remain uncounted", "Traceback", "pip install") if word in output]


@pytest.mark.parametrize("port", [8000, 8001, 8002, 8003])
def test_port_in_use_is_reported_in_one_line_before_anything_starts(make_run, port):
    with socket.create_server(("127.0.0.1", port)):
        output, _ = make_run().communicate(timeout=20)
    assert output.splitlines()[0] == f"make: port {port} is in use: stop what listens there"
    assert "started" not in output


@pytest.mark.parametrize(
    ("script", "line"),
    [(None, "make: PYTHON is missing: install Python 3.11 or newer"), ("exit 1", "Error 1")],
    ids=["missing", "unsuitable"],
)
def test_unsuitable_python_is_reported_before_anything_starts(make_run, tmp_path, script, line):
    python = tmp_path / "python3"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    output, _ = make_run(f"PYTHON={python}", "check").communicate(timeout=20)
    assert line.replace("PYTHON", str(python)) in output.splitlines()[0]
    assert "DockerCoins is at" not in output
