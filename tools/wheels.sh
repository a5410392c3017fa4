#!/usr/bin/env bash
# Fails unless each package of `make run` has a wheel for every supported Python and platform.
set -euo pipefail
cd "$(dirname "$0")/.."

files=()
for folder in run rng hasher webui worker; do files+=(-r "$folder/requirements.txt"); done
for python in 3.11 3.12 3.13 3.14 3.15; do
  for platform in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin; do
    echo "wheels for Python $python, $platform"
    .venv/bin/uv pip install --quiet --dry-run --only-binary :all: --target .venv/none \
      --python-version "$python" --python-platform "$platform" "${files[@]}"
  done
done
