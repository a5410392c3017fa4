"""`make bench` measures DockerCoins, with AGAINST=FOLDER alternating with another one."""

import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from cluster import measure_cluster
from measure import IS_ROOT, QUICK, App, Failed, measure, measure_build
from report import machine, show, table

HERE = Path(__file__).resolve().parent
RUNS = 1 if QUICK else 3


def noting(values):
    """Return a function that adds a figure to `values` and prints it."""

    def note(title, value):
        values[title].append(value)
        print(f"bench: {title}: {show(value)}", flush=True)

    return note


def main(other):
    """Measure, print the table, write it to bench/out/."""
    figures = {App(HERE.parent, "benchours"): defaultdict(list)}
    if other:
        figures[App(Path(other).resolve(), "benchagainst")] = defaultdict(list)
    if not IS_ROOT:
        print("bench: not root, so memory is not measured", file=sys.stderr)
    try:
        for number in range(-1, RUNS):
            for app, values in list(figures.items())[:: 1 if number % 2 else -1]:
                print(
                    f"bench: {app.folder}, {f'run {number + 1}' if number >= 0 else 'build'}",
                    flush=True,
                )
                step = measure_build if number < 0 else measure
                step(app, noting(values))
    finally:
        for app in figures:
            app.down()
    ours, theirs = [*figures.values(), {}][:2]
    if os.environ.get("KUBECONFIG"):
        print("bench: cluster")
        measure_cluster(noting(ours), RUNS)
    text = f"{machine()}, {RUNS} run{'s' * (RUNS > 1)}\n\n{table(ours, theirs)}"
    (HERE / "out").mkdir(exist_ok=True)
    (HERE / "out/results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: stopped"))
    try:
        main(os.environ.get("AGAINST"))
    except (Failed, OSError, subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        sys.exit(f"bench: {error or 'stopped'}")
