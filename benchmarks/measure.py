"""Whole processes, timed side by side: A B A B …, and the medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


@dataclass(frozen=True)
class Run:
    """One finished process."""

    elapsed_s: float
    first_line_s: float | None
    """Until it first wrote anything."""
    found_s: float | None
    """Until it wrote the text that was waited for."""
    peak_mib: float


def run(command: Sequence[str], *, until: str | None = None, cwd: Path | None = None) -> Run:
    """Run a command to its end, or until it writes `until`; then it is killed."""
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=ENVIRONMENT
    )
    assert process.stdout is not None
    first = found = None
    for line in process.stdout:
        now = time.perf_counter() - started
        first = now if first is None else first
        if until is not None and until in line:
            found = now
            process.kill()
            break
    process.stdout.close()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return Run(time.perf_counter() - started, first, found, usage.ru_maxrss / 1024)


def alternate(ways: dict[str, Callable[[], Run]], times: int) -> dict[str, list[Run]]:
    """Run every way once to warm the page cache, then all of them in turn, `times` times."""
    for way in ways.values():
        way()
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(times):
        for name, way in ways.items():
            runs[name].append(way())
    return runs


def median(runs: Sequence[Run], figure: str) -> float:
    """The median of one figure."""
    return statistics.median(value for run in runs if (value := getattr(run, figure)) is not None)
