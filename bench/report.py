"""Formats the figures as a table."""

import os
import re
import statistics
from datetime import date
from pathlib import Path

from measure import run

# In theory: 0.3 s a hash, 0.1 s of it at rng. With several rng: a simulation of random picks.
LIMITS = {
    "1 worker, hashes/s": 3.33,
    "2 workers, hashes/s": 6.67,
    "10 workers, hashes/s": 10,
    "Kubernetes, 10 workers, 1 rng, hashes/s": 10,
    "Kubernetes, 10 workers, 2 rng, hashes/s": 18.7,
    "Kubernetes, 10 workers, 5 rng, hashes/s": 29.1,
}


def show(value):
    """Return a figure with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cells(values):
    """Return the median of values, with the lowest and the highest if there are several."""
    if len(values) < 2:
        return "".join(map(show, values))
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"


def table(ours, theirs):
    """Return the figures as a Markdown table, with those of `theirs`, if any, and the ratio."""
    lines = ["| | median (lowest to highest) | limit |", "| --- | --- | --- |"]
    if theirs:
        lines = [f"{lines[0]} against | ratio |", f"{lines[1]} --- | --- |"]
    for title, values in ours.items():
        line = f"| {title} | {cells(values)} | {LIMITS.get(title, '')} |"
        if theirs:
            other = theirs.get(title, [])
            ratio = statistics.median(values) / statistics.median(other) if any(other) else None
            line += f" {cells(other)} | {show(ratio) if ratio else ''} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def machine():
    """Return the date, the machine and its version of Docker."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    engine = run("docker", "version", "--format", "{{.Server.Version}}").strip()
    kind = f" ({cpu[1]})" if cpu else ""
    return f"{date.today()}, {os.cpu_count()} CPUs{kind}, Docker {engine}"
