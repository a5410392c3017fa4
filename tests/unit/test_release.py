"""One version everywhere, and a command that sets it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = re.compile(r"dockercoins/(?:rng|hasher|webui|worker|\$SERVICE):(v\d+\.\d+)")
DEFAULT = re.compile(r"TAG:-(v\d+\.\d+)}")
HEADING = re.compile(r"^## \[(v\d+\.\d+)\]", re.M)


def files(root):
    """Return the text files of the repository that may name a version."""
    listed = subprocess.check_output(["git", "ls-files"], cwd=root, text=True).splitlines()
    return [root / name for name in listed if re.search(r"\.(md|ya?ml)$|Tiltfile$", name)]


def versions(root):
    """Return {version: files that name it} for the images of the application."""
    found = {}
    for file in set(files(root)) - {root / "CHANGELOG.md"}:  # which also names old ones
        text = file.read_text()
        for version in IMAGE.findall(text) + DEFAULT.findall(text):
            found.setdefault(version, set()).add(str(file.relative_to(root)))
    return found


def test_all_files_name_the_newest_release():
    assert list(versions(ROOT)) == [HEADING.search((ROOT / "CHANGELOG.md").read_text())[1]]


def test_release_command_sets_the_version_everywhere(tmp_path):
    script = ROOT / "tools/release.py"
    for file in [*files(ROOT), script]:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    for command in ("init", "--quiet"), ("add", "."):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, tmp_path / "tools/release.py", "v7.8"], check=True)
    assert versions(tmp_path) == {"v7.8": set().union(*versions(ROOT).values())}
    assert HEADING.search((tmp_path / "CHANGELOG.md").read_text())[1] == "v7.8"


def test_release_command_rejects_an_invalid_version():
    command = [sys.executable, ROOT / "tools/release.py", "1.1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "VERSION is '1.1', but must be like v1.1\n")
