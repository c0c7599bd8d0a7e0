"""What we run on: devices, dtypes, memory, and what follows where the recipe is silent."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import datasets
import psutil
import torch
import transformers
from accelerate import PartialState
from trl.kernels import chunked_logprob

from rlhf_cli.basis import PACKAGES
from rlhf_cli.errors import EnvironmentFault
from rlhf_cli.memory import CPU_TILE_TOKENS, GIB
from rlhf_cli.plan import Decision, Machine
from rlhf_cli.recipe import Recipe
from rlhf_cli.run_dir import output_dir_of

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

_Item = TypeVar("_Item")


def detect_machine(*, use_cpu: bool = False, environment: Mapping[str, str] | None = None) -> Machine:
    """Look at the devices of this process, or of one that is yet to be launched.

    Args:
        use_cpu: Ignore accelerators, as the recipe key `use_cpu` asks.
        environment: What a launched process would find; None is the environment of this one.
    """
    variables = os.environ if environment is None else environment
    processes, here = (int(variables.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    threads = torch.get_num_threads()
    if not use_cpu and torch.cuda.is_available():
        if environment is None:  # else this process sees one GPU only, and those that are launched will count them
            _refuse_crowd(here, torch.cuda.device_count(), "GPU")
        properties = torch.cuda.get_device_properties(0)
        free, total = (amount / GIB for amount in torch.cuda.mem_get_info())
        return Machine("cuda", properties.name, processes, threads, total, free, bf16=torch.cuda.is_bf16_supported())
    _refuse_crowd(here, os.cpu_count() or 1, "core")
    _refuse_sharding_on_cpu(variables)
    free, total = _main_memory(here)
    if not use_cpu and torch.backends.mps.is_available():
        return Machine("mps", platform.processor() or "Apple", processes, threads, total, free, bf16=True)
    return Machine("cpu", _cpu_name(), processes, threads, total, free, bf16=_cpu_computes_bf16())


def _main_memory(processes: int) -> tuple[float, float]:
    """GiB free and in all, of this machine or of what its container may have, for each of so many processes on it."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, held = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (allowed := limit.read_text(encoding="ascii").strip()).isdigit():
        total = min(total, int(allowed))
        free = min(free, total - int(held.read_text(encoding="ascii")))
    return free / processes / GIB, total / processes / GIB


def total_memory(device: torch.device) -> int:
    """Bytes of a device; of a CPU, of the machine or what its container may have, for each process on it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(_main_memory(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))[1] * GIB)


def _refuse_crowd(processes: int, devices: int, kind: str) -> None:
    """Refuse more processes on this machine than it has devices for."""
    if processes > devices:
        raise EnvironmentFault(
            f"{processes} processes are too many for the {devices} {kind}{'s' if devices != 1 else ''} here",
            hint=f"`--num-processes {devices}`" + (", or `use_cpu: true`" if kind == "GPU" else ""),
        )


def _refuse_sharding_on_cpu(environment: Mapping[str, str]) -> None:
    """Refuse what accelerate would pass over: on a CPU it replicates the model, whatever its configuration says."""
    for name, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if environment.get(variable, "false").lower() == "true":
            raise EnvironmentFault(
                f"{name} needs GPUs, and this machine has none to use",
                hint="`--accelerate-config multi_gpu`, or `--num-processes` alone, trains on a CPU too",
            )


def is_first_process() -> bool:
    """Whether this process writes for all of them; launchers number processes in RANK."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def first_process_first(machine: Machine) -> Iterator[None]:
    """Let the first of several processes through alone, and the others after it."""
    if machine.processes == 1:
        yield
        return
    with PartialState(cpu=machine.device == "cpu").main_process_first():
        yield


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process that trains; all of them must ask together."""
    if not torch.distributed.is_initialized():
        return flag
    flags = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags.item())


def wait_for_all() -> None:
    """Wait until every process that trains is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def free_memory() -> None:
    """Let go of models that nobody needs any more; a trainer and its callbacks hold each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def leave_processes() -> None:
    """Part from the other processes in order; one that just ends may abort another that is still listening to it."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def own_part(work: Sequence[_Item]) -> list[_Item]:
    """This process's share of what all of them have before them: every so-manieth."""
    if not torch.distributed.is_initialized():
        return list(work)
    return list(work[torch.distributed.get_rank() :: torch.distributed.get_world_size()])


def gather_parts(done: list[_Item]) -> list[_Item]:
    """What every process has done, in every process."""
    if not torch.distributed.is_initialized():
        return done
    parts: list[list[_Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, done)
    return [item for part in parts for item in part]


def settle_on_cpu() -> None:
    """Have glibc keep freed blocks, and TRL work the language model head off in small tiles.

    Every step frees and takes the same activations of hundreds of MiB, and by default glibc hands each back to the
    kernel, which zeroes it for the next step: a third of a step. TRL's tiles of 4,096 tokens suit a GPU; on a CPU they
    fall out of every cache, and several copies of one are most of a step's memory.
    """
    chunked_logprob.TOKEN_CHUNK_SIZE = CPU_TILE_TOKENS
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def hand_back_memory() -> None:
    """Give freed blocks of the C library back, between phases whose tensors differ in shape and would lie between."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_computes_bf16() -> bool:
    """AMX tiles or AVX-512 BF16; elsewhere bf16 on a CPU is emulated, and slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def decide(recipe: Recipe, machine: Machine, defaults: Mapping[str, Any], *, adapts: bool) -> dict[str, Decision]:
    """Values for the keys that the recipe leaves open.

    Args:
        recipe: What was written; it is never overruled.
        machine: What the run has to work with.
        defaults: The method's changes of TRL's defaults.
        adapts: Whether an adapter trains, on weights that are frozen.
    """
    decisions = {key: Decision(value, "default of rlhf-cli") for key, value in defaults.items() if key not in recipe}
    on_cpu = machine.device == "cpu"
    wanted: dict[str, Decision] = {
        "output_dir": Decision(str(output_dir_of(recipe)), "named after the recipe"),
        "use_cpu": Decision(on_cpu, "no accelerator here" if on_cpu else f"there is {machine.name}"),
        "bf16": _decide_bf16(recipe, machine),
        "activation_checkpointing": _decide_checkpointing(recipe, machine),
        "logging_nan_inf_filter": Decision(False, "a loss that is no number is not hidden"),
        "dataloader_pin_memory": Decision(not on_cpu, "pinned memory is for copies to a GPU"),
    }
    decisions.update({key: decision for key, decision in wanted.items() if key not in recipe})
    if "dtype" not in recipe:
        bf16 = decisions["bf16"].value if "bf16" in decisions else recipe["bf16"]
        decisions["dtype"] = (
            _decide_dtype(recipe, bf16=bool(bf16), device=machine.device)
            if adapts
            else Decision("float32", "weights that train need it")
        )
    return decisions


def _decide_bf16(recipe: Recipe, machine: Machine) -> Decision:
    if recipe["fp16"]:
        return Decision(False, "the recipe says fp16")
    return Decision(machine.bf16, "computed by the hardware" if machine.bf16 else "only emulated by this hardware")


def _decide_checkpointing(recipe: Recipe, machine: Machine) -> Decision:
    if "gradient_checkpointing" in recipe:
        return Decision(recipe["gradient_checkpointing"], "`gradient_checkpointing` in the recipe")
    if machine.device == "cpu":
        return Decision(False, "a CPU has memory rather than speed to spare")
    return Decision(True, "a GPU has speed rather than memory to spare")


def _decide_dtype(recipe: Recipe, *, bf16: bool, device: str) -> Decision:
    """The dtype frozen weights are stored in. What is trained is kept in fp32 whatever this says."""
    if recipe["load_in_4bit"] and bf16:
        return Decision("bfloat16", "what 4-bit weights are computed in")
    if device == "cpu":
        return Decision("float32", "on a CPU, bf16 storage is no faster")
    return Decision("bfloat16", "frozen weights need no more") if bf16 else Decision("float32", "no bf16 here")


def describe_environment() -> dict[str, Any]:
    """Versions of what computes, and of the working copy, so that a run can be done again."""
    versions = {name: metadata.version(name) for name in ("rlhf-cli", *PACKAGES)}
    return {"python": platform.python_version(), **versions, "git": _describe_working_copy()}


def _describe_working_copy() -> str | None:
    """The commit of the folder that `rlhf` was called in; None without git or a repository."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return git.stdout.strip() or None


def examine() -> dict[str, str]:
    """The machine and the installed parts, in words, for `rlhf doctor`."""
    machine = detect_machine()
    report = {
        "device": f"{machine.device}: {machine.name}",
        "memory": f"{machine.memory_gib:.1f} GiB",
        "threads": str(machine.threads),
        "bf16": "computed by the hardware" if machine.bf16 else "emulated only, so runs use fp32",
        "GPUs": str(torch.cuda.device_count()),
        "4-bit": "bitsandbytes, on the CPU too"
        if importlib.util.find_spec("bitsandbytes")
        else "bitsandbytes is missing",
    }
    for name, package in (("flash-attn", "flash_attn"), ("deepspeed", "deepspeed"), ("trackio", "trackio")):
        report[name] = "installed" if importlib.util.find_spec(package) else f"not installed (pip install {name})"
    return {**report, **{name: str(version) for name, version in describe_environment().items() if version}}


@contextmanager
def quietly() -> Iterator[None]:
    """Keep libraries from drawing bars and repeating what is known already; errors come through."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
