"""Start a command as many processes, pass signals on, and end none of them alone.

The first process talks to the terminal; what the others say goes to a file each. The first that fails decides the exit
code. Whoever started the processes (torchrun, accelerate, srun, or this file) is told by RANK and WORLD_SIZE.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
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
from typing import Any

from rlhf_cli.errors import EnvironmentFault, RecipeError
from rlhf_cli.going_on import GOES_ON, command_to_go_on
from rlhf_cli.run_dir import RANK_LOG, moved_to
from rlhf_cli.terminal import printable, say, say_error

NAMED_CONFIGS = ("multi_gpu", "zero2", "zero3", "fsdp2")
"""Configurations of accelerate that TRL ships."""
LAST_LINES = 20
_NOT_ITS_BUSINESS = (
    "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING",
    "OMP_NUM_THREADS", "PYTHONPATH",
)  # fmt: skip
"""What the recipe says, or is decided for this machine: a configuration for any model has no say in it."""
_POLL_S = 0.05
_TOGETHER_S = 5.0
"""After one process failed, the others have as long to end by themselves: most faults meet all of them at once."""
_GRACE_S = 10.0
"""Then they are told to end, and after this long they are made to."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAUNCHER = "RLHF_LAUNCHER"
"""The variable that names the process that launched this one."""


@dataclass(frozen=True)
class Launch:
    """As how many processes a command runs, and what accelerate's configuration sets for them."""

    count: int
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """What every one of the processes finds in its environment, beside what tells them apart."""
        count = str(self.count)
        return {**_threads(self.count), **self.environment, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}


def plan_launch(num_processes: int | None, config: str | None) -> Launch | None:
    """As how many processes a command is to run; None is in this one.

    Args:
        num_processes: As asked; else what the configuration says, else one, or with a configuration by name one a GPU.
        config: A configuration of accelerate, by name or file.

    Raises:
        RecipeError: when it is no number to start, or there is no such configuration.
    """
    if is_launched():
        _refuse_second_launch(num_processes)
        return None
    processes = _count_processes(num_processes, config)
    if processes == 1 and config is None:
        return None
    return Launch(processes, accelerate_environment(config, processes) if config else {})


def adopt_slurm() -> None:
    """Take rank and address from the tasks of `srun`, where nobody else has set them.

    A batch script by itself is one process, however many tasks the job has.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in os.environ or tasks == "1" or "SLURM_PROCID" not in os.environ:
        return
    first = re.match(r"([^\[,]+)(?:\[(\d+))?", os.environ.get("SLURM_STEP_NODELIST", "localhost"))
    # Where srun shows each task its own GPU only, that one is number 0.
    alone = len(os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    found = {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": "0" if alone else os.environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": "".join(part or "" for part in first.groups()) if first else "localhost",
        "MASTER_PORT": str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000),
    }
    for name, value in found.items():
        os.environ.setdefault(name, value)


def is_launched() -> bool:
    """Whether this is one of several processes already, or the only one of a launcher."""
    return "WORLD_SIZE" in os.environ


def _refuse_second_launch(num_processes: int | None) -> None:
    """Refuse another number of processes than the launcher has started."""
    there = os.environ["WORLD_SIZE"]
    if num_processes is not None and str(num_processes) != there:
        raise RecipeError(
            f"--num-processes {num_processes} under a launcher that has started {there}",
            hint="say it to the launcher only",
        )


def take_one_gpu() -> None:
    """Without a launcher, leave torch the first GPU only: TRL refuses to train one process on several."""
    if "WORLD_SIZE" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _count_processes(num_processes: int | None, config: str | None) -> int:
    if num_processes is None and config is not None:
        num_processes = _read_config(config).get("num_processes") if config not in NAMED_CONFIGS else _count_gpus()
    if num_processes is None:
        return 1
    if num_processes < 1:
        raise RecipeError(f"--num-processes must be at least 1, got {num_processes}")
    return num_processes


def _count_gpus() -> int:
    """In a process of its own, since this one goes on without torch."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return max(1, int(found)) if found.isdigit() else 1


# --- the configuration --------------------------------------------------------------------------------------------


def accelerate_environment(config: str, processes: int) -> dict[str, str]:
    """The variables that accelerate's launcher would set for a configuration.

    Args:
        config: One of NAMED_CONFIGS, or a file as `accelerate config` writes it.
        processes: How many will be started.

    Raises:
        RecipeError: when there is no such configuration, or accelerate refuses it.
        EnvironmentFault: when a part it needs is not installed.
    """
    settings = _read_config(config)
    if settings.get("distributed_type") == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise EnvironmentFault(
            f"`{config}` needs DeepSpeed, which is not installed", hint="pip install 'rlhf-cli[deepspeed]'"
        )
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    before = dict(os.environ)
    arguments = ["--config_file", str(_config_file(config)), "--num_processes", str(processes)]
    try:
        parsed, _, _ = _validate_launch_command(
            launch_command_parser().parse_args([*arguments, "--main_process_port", "0", "rlhf"])
        )
        prepared = prepare_deepspeed_cmd_env(parsed)[1] if parsed.use_deepspeed else prepare_multi_gpu_env(parsed)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"accelerate refuses the configuration: {error}", where=config) from error
    changed = {name: value for name, value in prepared.items() if before.get(name) != value}
    return {name: value for name, value in changed.items() if name not in _NOT_ITS_BUSINESS}


def _config_file(config: str) -> Path:
    if config not in NAMED_CONFIGS:
        return Path(config).expanduser()
    trl = importlib.util.find_spec("trl")
    folder = Path(next(iter(trl.submodule_search_locations or []))) if trl else Path()
    return folder / "accelerate_configs" / f"{config}.yaml"


def _read_config(config: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = _config_file(config)
    if not path.is_file():
        raise RecipeError(
            f"there is no accelerate configuration `{config}`", hint=f"one of {', '.join(NAMED_CONFIGS)}, or a file"
        )
    try:
        settings = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from None
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        raise RecipeError(
            "no configuration of accelerate: the key `distributed_type` is missing",
            where=str(path),
            hint="`accelerate config --config_file FILE` writes one",
        )
    return settings


# --- the processes ------------------------------------------------------------------------------------------------


@dataclass
class _Processes:
    """The processes of one launch."""

    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By rank."""
    ended: list[tuple[int, int]] = field(default_factory=list)
    """Rank and exit code, in the order they were seen to end."""

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


def launch(command: Sequence[str], planned: Launch) -> int:
    """Run a command as several processes on this machine, to their end.

    Args:
        command: What each of them runs.
        planned: How many, and with what environment.

    Returns:
        0, or the exit code of the first process that failed.
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
            started.running[rank] = _start(command, rank, shared, logs)
        while started.running and not any(code for _, code in started.ended):
            time.sleep(_POLL_S)
            started.poll()
        _end_the_rest(started)
    code = _tell(started, logs)
    _tidy(logs, keep=code != 0)
    return code


def _start(command: Sequence[str], rank: int, shared: Mapping[str, str], logs: Path) -> subprocess.Popen[bytes]:
    log = logs / f"rank-{rank}.log"
    own = {**os.environ, **shared, _LAUNCHER: str(os.getpid()), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    # A session of its own: Ctrl-C reaches a process once, through us, and not a second time from the terminal.
    if rank == 0:
        return subprocess.Popen(command, env=own, start_new_session=True)
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


def _threads(processes: int) -> dict[str, str]:
    """Each process its share of the cores; left alone, every one would take them all."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // processes))}


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _forwarding(started: _Processes) -> Iterator[None]:
    """Pass every signal on; a process ends after the step on the first, and at once on the second."""

    def forward(signum: int, _: FrameType | None) -> None:
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
