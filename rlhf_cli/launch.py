"""Start a command as many processes, pass signals on, and end none of them alone.

The first process talks to the terminal; what the others say goes to a file each. The first that fails decides the exit
code. Whoever started the processes (torchrun, accelerate, srun, or this file) is told by RANK and WORLD_SIZE.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from rlhf_cli.errors import EnvironmentFault
from rlhf_cli.going_on import GOES_ON, command_to_go_on
from rlhf_cli.processes import Launch
from rlhf_cli.run_dir import RANK_LOG, moved_to
from rlhf_cli.terminal import printable, say, say_error

LAST_LINES = 20
_POLL_S = 0.05
_TOGETHER_S = 5.0
"""After one process failed, the others have as long to end by themselves: most faults meet all of them at once."""
_GRACE_S = 10.0
"""Then they are told to end, and after this long they are made to."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAUNCHER = "RLHF_LAUNCHER"
"""The variable that names the process that launched this one."""


class Ended(NamedTuple):
    """What became of a launch."""

    code: int
    """0, or the exit code of the first process that failed."""
    signum: int | None
    """A signal that reached it, if only when there was nothing more to stop."""


@dataclass
class _Processes:
    """The processes of one launch."""

    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By rank."""
    ended: list[tuple[int, int]] = field(default_factory=list)
    """Rank and exit code, in the order they were seen to end."""
    signum: int | None = None
    """The last signal that was passed on."""

    def send(self, signum: int) -> None:
        for process in self.running.values():
            process.send_signal(signum)

    def poll(self) -> None:
        for rank, process in list(self.running.items()):
            if process.poll() is not None:
                self.ended.append((rank, process.returncode))
                del self.running[rank]

    def wait(self, seconds: float) -> None:
        """Until all have ended, but no longer than this."""
        limit = time.monotonic() + seconds
        while self.running and time.monotonic() < limit:
            time.sleep(_POLL_S)
            self.poll()


def launch(command: Sequence[str], planned: Launch, out: IO[str] | None = None) -> Ended:
    """Run a command as several processes on this machine, to their end.

    Args:
        command: What each of them runs.
        planned: How many, and with what environment.
        out: Where stdout of the first goes, if not to that of this process.
    """
    logs = Path(tempfile.mkdtemp(prefix="rlhf-logs-"))
    started = _Processes()
    shared = {
        GOES_ON: command_to_go_on(),
        **planned.variables,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    with _forwarding(started):
        for rank in range(planned.count):
            started.running[rank] = _start(command, rank, shared, logs, out)
        while started.running and not any(code for _, code in started.ended):
            time.sleep(_POLL_S)
            started.poll()
        _end_the_rest(started)
    code = _tell(started, logs)
    _tidy(logs, keep=code != 0)
    return Ended(code, started.signum)


def _start(
    command: Sequence[str], rank: int, shared: Mapping[str, str], logs: Path, out: IO[str] | None
) -> subprocess.Popen[bytes]:
    log = logs / f"rank-{rank}.log"
    own = {**os.environ, **shared, _LAUNCHER: str(os.getpid()), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    # A session of its own: Ctrl-C reaches a process once, through us, and not a second time from the terminal.
    if rank == 0:
        return subprocess.Popen(command, env=own, stdout=out, start_new_session=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            env={**own, RANK_LOG: str(log)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def end_with_launcher() -> None:
    """In a process that was launched here: have the kernel send SIGTERM when the launcher dies, of whatever.

    Linux only; elsewhere a launcher that is killed by SIGKILL leaves its processes training.
    """
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):
        sys.exit(128 + signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _forwarding(started: _Processes) -> Iterator[None]:
    """Pass every signal on; a process ends after the step on the first, and at once on the second."""

    def forward(signum: int, _: FrameType | None) -> None:
        started.signum = signum
        started.send(signum)

    previous = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _end_the_rest(started: _Processes) -> None:
    """After a failure: processes that wait for a dead one in a collective do not come back."""
    started.wait(_TOGETHER_S)
    started.send(signal.SIGTERM)
    started.wait(_GRACE_S)
    started.send(signal.SIGKILL)
    started.wait(_GRACE_S)


def _tell(started: _Processes, logs: Path) -> int:
    """Say why the first process failed, where it did not say so itself; the exit code."""
    failed = [(rank, code) for rank, code in started.ended if code]
    if not failed:
        return 0
    rank, code = failed[0]
    own_words = dict(failed).get(0) == code
    if -code in (signal.SIGINT, signal.SIGTERM):
        return 128 - code  # it came when there was nothing more to stop
    if code < 0:
        name = signal.Signals(-code).name
        why = ", most likely by the system for want of memory" if -code == signal.SIGKILL else ""
        say_error(f"error: process {rank} was ended by {name}{why}")
        _show_last_lines(rank, logs)
        return EnvironmentFault.exit_code if -code == signal.SIGKILL else 1
    if not own_words:
        say_error(f"error: process {rank} ended with exit code {code}")
        _show_last_lines(rank, logs)
    return code


def _show_last_lines(rank: int, logs: Path) -> None:
    log = _log_of(rank, logs)
    if log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        say(f"the last lines of {log}:")
        say("\n".join(f"  {printable(line)}" for line in lines[-LAST_LINES:]))


def _log_of(rank: int, logs: Path) -> Path:
    """Where a process talks to: a temporary file, or once there is one the run folder, which the file then names."""
    log = logs / f"rank-{rank}.log"
    return moved_to(log) or log


def _tidy(logs: Path, *, keep: bool) -> None:
    """Remove what was moved into the run folder; after a failure, keep what was not."""
    for log in logs.glob("rank-*.log"):
        if not keep or moved_to(log) or not log.stat().st_size:
            log.unlink()
    if not any(logs.glob("*.log")):
        shutil.rmtree(logs)
