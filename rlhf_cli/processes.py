"""As how many processes a command runs: as asked, as a launcher says, or as a configuration of accelerate has it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.errors import EnvironmentFault, RecipeError

NAMED_CONFIGS = ("multi_gpu", "zero2", "zero3", "fsdp2")
"""Configurations of accelerate that TRL ships."""
_NOT_ITS_BUSINESS = (
    "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING",
    "OMP_NUM_THREADS", "PYTHONPATH",
)  # fmt: skip
"""What the recipe says, or is decided for this machine: a configuration for any model has no say in it."""


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


def _threads(processes: int) -> dict[str, str]:
    """Each process its share of the cores; left alone, every one would take them all."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, _available_cores() // processes))}


def _available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        return Path(os.path.expanduser(config))
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
