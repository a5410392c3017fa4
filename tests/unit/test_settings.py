"""A bad setting ends the process at once, with one line that names it and what it may be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
BAD = ["", "-1", "nan", "1e400", "0.1\x01"]
CASES = [
    *(("rng", "RNG_DELAY", value) for value in BAD),
    *(("hasher", "HASHER_DELAY", value) for value in BAD),
    *(("worker", "WORKER_DELAY", value) for value in BAD),
    *((name, "PORT", value) for name in ("rng", "hasher", "webui") for value in ("", "0", "65536", "http", " 80", "٣")),
    *(
        ("worker", name, value)
        for name in ("RNG_URL", "HASHER_URL")
        for value in ("", "rng", "https://rng", "http://:x", "http://[", "http://r ng")
    ),
    *(
        (name, "REDIS_URL", value)
        for name in ("webui", "worker")
        for value in ("", "redis", "http://redis", "redis://redis:99999", "redis://a..b", "redis://redis?db=1")
    ),
]


@pytest.mark.parametrize(("service", "name", "value"), CASES)
def test_bad_setting_ends_the_process_with_one_line(service, name, value):
    command = [sys.executable, "worker.py"] if service == "worker" else [BIN / "gunicorn", f"{service}:app"]
    env = {**os.environ, "PORT": "0" if service == "worker" else "1", name: value}
    done = subprocess.run(command, cwd=ROOT / service, env=env, capture_output=True, text=True, timeout=20)
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{name} is {value!r}, but must be")
