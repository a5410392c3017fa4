"""Sets the version wherever plain YAML and the documentation repeat it: tools/release.py v1.1"""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path


def release(root, new):
    """Replace the version in docker-compose.yml with `new` in all files of the repository."""
    if not re.fullmatch(r"v\d+\.\d+", new):
        sys.exit(f"VERSION is {new!r}, but must be like v1.1")
    old = re.search(r"TAG:-(v[\d.]+)}", (root / "docker-compose.yml").read_text())[1]
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=root, text=True)
    for name in filter(re.compile(r"\.(md|ya?ml|py)$|Tiltfile$").search, listed.split("\0")):
        file = root / name
        text = file.read_text()
        if name == "CHANGELOG.md":
            heading = "## [Unreleased]\n"
            changed = text.replace(heading, f"{heading}\n## [{new}] - {date.today()}\n")
        else:  # the version by itself, not as part of another one
            changed = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\.?\w)", new, text)
        if changed != text:
            file.write_text(changed)
            print(f"{name}: {new}")


if __name__ == "__main__":
    release(Path(__file__).parents[1], sys.argv[1])
