"""Whole processes, timed side by side: A B A B …, and the medians."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
    """Resident memory of all its processes together, sampled; pages that they share count once."""


def run(command: Sequence[str], *, until: str | None = None, cwd: Path | None = None) -> Run:
    """Run a command to its end, or until it writes `until`; then it is killed."""
    started = time.perf_counter()
    # A session of its own: `trl sft` trains in a child, which is measured, and killed, with it.
    process = subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = found = None
    with watched_memory(process.pid) as peak:
        for line in process.stdout:
            now = time.perf_counter() - started
            first = now if first is None else first
            if until is not None and until in line:
                found = now
                break
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            if found is not None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Run(time.perf_counter() - started, first, found, peak[0])


@contextlib.contextmanager
def watched_memory(session: int) -> Iterator[list[float]]:
    """Sample the resident memory of a session's processes; the one number of the list is its peak, in MiB."""
    ended = threading.Event()
    peak = [0.0]
    watch = threading.Thread(target=_watch_memory, args=(session, ended, peak))
    watch.start()
    yield peak
    ended.set()
    watch.join()


def _watch_memory(session: int, ended: threading.Event, peak: list[float]) -> None:
    while not ended.wait(0.02):
        parts = [_memory_mib(folder) for folder in _processes_of(session)]
        peak[0] = max(peak[0], sum(own for own, _ in parts) + max((shared for _, shared in parts), default=0))


def _processes_of(session: int) -> list[Path]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name in brackets: state, parent, group, session.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append(folder)
    return found


def _memory_mib(folder: Path) -> tuple[float, float]:
    """Resident pages of one process: its own, and those it shares."""
    own = resident = 0
    with contextlib.suppress(OSError):
        for line in (folder / "smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            resident += int(rest.split()[0]) if name == "Rss" else 0
            own += int(rest.split()[0]) if name in ("Private_Clean", "Private_Dirty") else 0
    return own / 1024, (resident - own) / 1024


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
