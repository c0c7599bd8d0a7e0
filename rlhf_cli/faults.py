"""What a machine does to a run: memory that runs out, a disk that fills up; told from what is raised."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from rlhf_cli.errors import DISK_FULL, EnvironmentFault, first_line
from rlhf_cli.going_on import command_to_go_on
from rlhf_cli.memory import GIB
from rlhf_cli.plan import Plan
from rlhf_cli.run_dir import RunDir

_MEMORY_WORDS = ("can't allocate memory", "out of memory", "cannot allocate memory", "std::bad_alloc")
_DISK_WORDS = (
    "os error 28",
    "os error 27",
    "no space left",
    "file too large",
    "enforce fail at inline_container",
    "iostream error",
)
"""torch raises a plain RuntimeError for both, safetensors an error of its own with the system's number."""
_RAISED = (RuntimeError, OSError, MemoryError, SafetensorError)


@contextmanager
def explained_faults(run: RunDir, plan: Plan) -> Iterator[None]:
    """Turn exceptions for want of memory or disk into an error that says what would help.

    Raises:
        EnvironmentFault: instead of what torch, safetensors or the system raised; anything else passes through.
    """
    try:
        yield
    except _RAISED as error:
        if is_out_of_memory(error):
            raise _memory_fault(plan, error) from error
        if is_disk_full(error):
            raise _disk_fault(run, error) from error
        raise


@contextmanager
def explained_exhaustion(smaller: str) -> Iterator[None]:
    """The same of what has no plan, and leaves nothing to go on from.

    Args:
        smaller: What would take less memory.
    """
    try:
        yield
    except _RAISED as error:
        if is_out_of_memory(error):
            raise EnvironmentFault(f"out of memory: {first_line(error)}", hint=smaller) from error
        if is_disk_full(error):
            raise EnvironmentFault(f"the disk is full: {error}", hint="make room, and run it again") from error
        raise


def refuse_full_disk(run: RunDir, plan: Plan) -> None:
    """Refuse a run whose checkpoints and model will not fit on the disk.

    Raises:
        EnvironmentFault: naming what is needed and what is free.
    """
    folder = next(each for each in (run.path, *run.path.absolute().parents) if each.is_dir())
    there = sum(file.stat().st_size for path in run.checkpoints() for file in path.rglob("*") if file.is_file())
    usage = shutil.disk_usage(folder)
    free, needed = (usage.free + there) / GIB, sum(plan.disk_gib.values())
    if needed <= free or not usage.total:  # some file systems do not say how large they are
        return
    parts = ", ".join(f"{name} {amount:.2f}" for name, amount in plan.disk_gib.items())
    raise EnvironmentFault(
        f"the disk is too small: about {needed:.2f} GiB are needed ({parts}), {free:.2f} are free in {folder}",
        hint="`save_total_limit: 1` keeps one checkpoint, `save_steps` saves less often; or name another output_dir",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or _says(error, _MEMORY_WORDS)


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception, or one it came from, says that a file could not grow."""
    return getattr(error, "errno", None) in DISK_FULL or _says(error, _DISK_WORDS)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)


def _memory_fault(plan: Plan, error: BaseException) -> EnvironmentFault:
    return EnvironmentFault(
        f"out of memory: {first_line(error)}; the plan wants about {plan.memory.peak_gib:.2f} GiB",
        hint=f"what should fit: {plan.smaller}",
    )


def _disk_fault(run: RunDir, error: BaseException) -> EnvironmentFault:
    complete = run.complete_checkpoints()
    kept = "there is no checkpoint yet"
    if complete:
        kept = f"{complete[0]} is complete, and `{command_to_go_on(run.secrets)}` goes on from it"
    half = [path for path in run.checkpoints() if path not in complete]
    remove = f"remove {half[0]}, which is cut off, or make room otherwise; " if half else "make room; "
    free = shutil.disk_usage(run.path).free / GIB
    return EnvironmentFault(
        f"the disk of {run.path} is full ({free:.2f} GiB free): {first_line(error)}", hint=f"{remove}{kept}"
    )
