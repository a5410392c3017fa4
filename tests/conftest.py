"""What all tests share: each service's module under its own name."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), *(str(ROOT / name) for name in ("rng", "hasher", "webui", "worker"))]
