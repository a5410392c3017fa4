"""A bad setting ends the process at once, with one line that names it and the allowed values."""

import os
import runpy
import subprocess
from unittest.mock import patch

import pytest
from support.processes import ROOT

HTTP = ("rng", "hasher", "webui")
DELAYS = ("", "-1", "31", "nan", "1e400", "٣", "0.1\x01")
PORTS = ("", "0", "65536", "http", " 80", "٣")
URLS = ("", "rng", "https://rng", "http://:x", "http://[", "http://[:]:80", "http://r ng")
URLS += ("http://r:99999", "http://u:p@rng", "http://rng/5")
REDIS_URLS = ("", "redis", "http://redis", "redis://r:99999", "redis://a..b", "redis://r?db=1")
CASES = [
    *((name, f"{name.upper()}_DELAY", DELAYS) for name in ("rng", "hasher", "worker")),
    *((name, "PORT", PORTS) for name in HTTP),
    *(("worker", name, URLS) for name in ("RNG_URL", "HASHER_URL")),
    *((name, "REDIS_URL", REDIS_URLS) for name in ("webui", "worker")),
]


@pytest.mark.parametrize(("service", "setting", "values"), CASES)
def test_bad_setting_is_a_one_line_error(service, setting, values):
    file = "gunicorn.conf" if setting == "PORT" else service
    for value in values:
        given = patch.dict(os.environ, {setting: value})
        with given, patch("gevent.monkey.patch_all"), pytest.raises(SystemExit) as end:
            runpy.run_path(ROOT / service / f"{file}.py")
        assert end.value.code.startswith(f"{setting} is {value!r}, but must be ")
        assert len(end.value.code.splitlines()) == 1


@pytest.mark.parametrize(("service", "setting", "values"), CASES)
def test_bad_setting_ends_the_process_with_one_line(service, setting, values):
    command = "exec python worker.py" if service == "worker" else f"exec gunicorn {service}:app"
    path, values = f"{ROOT}/.venv/bin:{os.environ['PATH']}", values[:2]
    started = [
        subprocess.Popen(
            ["timeout", "20", "bash", "-c", command],
            cwd=ROOT / service,
            env={"PATH": path, "PORT": "1", setting: value},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for value in values
    ]
    outputs = [process.communicate(timeout=30)[0] for process in started]
    for process, output, value in zip(started, outputs, values, strict=True):
        assert output.startswith(f"{setting} is {value!r}, but must be ")
        assert (process.returncode, len(output.splitlines())) == (1, 1)
