"""Tokens a second and memory beside TRL: python benchmarks/throughput.py MODEL ROWS [ROUNDS] [METHOD].

Speed is that of the steady state. MODEL is a chat model folder, ROWS a `.jsonl` of conversations, or of preferences for
the METHODs `reward` and `dpo` instead of `sft`. Two comparisons: every setting the same, threads included, and each
tool left to its own defaults (but for `use_cpu: true`, without which `trl` does not start on a machine without a GPU);
accelerate, which `trl` starts, leaves a process one thread by default.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import BIN, ENVIRONMENT, watched_memory

SHARED = {
    "max_steps": 8, "logging_steps": 1, "use_peft": True, "save_strategy": "no", "report_to": "none", "use_cpu": True,
}  # fmt: skip
SAME = {"bf16": True, "gradient_checkpointing": False, "dtype": "float32", "dataloader_pin_memory": False}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"max_length": 1024, "packing": True, "per_device_train_batch_size": 2, "assistant_only_loss": False},
    "reward": {"max_length": 512, "per_device_train_batch_size": 4, "lora_task_type": "SEQ_CLS"},
    "dpo": {"max_length": 512, "per_device_train_batch_size": 4},
}
COMMANDS = {"rlhf": {"reward": "train-reward"}, "trl": {}}
"""What a tool calls a method, where it has another name for it."""
SKIPPED_STEPS = 2


@dataclass(frozen=True)
class Figures:
    """One run."""

    tokens_per_s: float
    peak_mib: float


def main() -> None:
    """Print tokens a second and memory of both tools, and their ratios."""
    model, rows = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    method = sys.argv[4] if len(sys.argv) > 4 else "sft"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        shutil.copy(rows, folder / "data/train.jsonl")
        threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
        for title, settings, environment in (("same settings", SAME, threads), ("own defaults", {}, {})):
            keys = {"model_name_or_path": str(model), "dataset_name": "data", **SHARED, **METHODS[method], **settings}
            (folder / "recipe.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
            figures: dict[str, list[Figures]] = {"rlhf": [], "trl": []}
            for _ in range(rounds):
                for tool, runs in figures.items():
                    runs.append(train(tool, method, folder, environment))
            show(f"{method}, {title}", figures)


def show(title: str, figures: dict[str, list[Figures]]) -> None:
    """The medians of both tools, and of the ratios of each round."""
    for tool, runs in figures.items():
        shown = ", ".join(f"{run.tokens_per_s:.0f}" for run in runs)
        memory = statistics.median(run.peak_mib for run in runs)
        speed = statistics.median(run.tokens_per_s for run in runs)
        print(f"{title:<22} {tool:<5} {speed:7.0f} tokens/s  ({shown})  {memory:7,.0f} MiB")
    rounds = list(zip(figures["rlhf"], figures["trl"], strict=True))
    faster = statistics.median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in rounds)
    larger = statistics.median(ours.peak_mib / theirs.peak_mib for ours, theirs in rounds)
    print(f"{title:<22} rlhf / trl: {faster:.2f} of the speed, {larger:.2f} of the memory", flush=True)


def train(tool: str, method: str, folder: Path, environment: dict[str, str]) -> Figures:
    """Train a few steps with one tool; the first ones, which warm up, do not count for the speed."""
    output = folder / f"out-{tool}"
    shutil.rmtree(output, ignore_errors=True)
    config = ["recipe.yaml"] if tool == "rlhf" else ["--config", "recipe.yaml", "--disable_tqdm", "true"]
    command = [str(BIN / tool), COMMANDS[tool].get(method, method), *config, "--output_dir", str(output)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        start_new_session=True,
    )
    with watched_memory(process.pid) as peak:
        speed = _speed(tool, process, output)
    return Figures(speed, peak[0])


def _speed(tool: str, process: subprocess.Popen[str], output: Path) -> float:
    seen: list[tuple[float, float]] = []
    while process.poll() is None:
        tokens = _tokens_of_rlhf(output) if tool == "rlhf" else _tokens_of_trl(process)
        if tokens and (not seen or tokens > seen[-1][1]):
            seen.append((time.perf_counter(), tokens))
        if tool == "rlhf":
            time.sleep(0.005)
    if len(seen) < SKIPPED_STEPS + 2:
        raise SystemExit(f"{process.args} logged only {len(seen)} steps")
    (start_s, start), (end_s, end) = seen[SKIPPED_STEPS - 1], seen[-1]
    return (end - start) / (end_s - start_s)


def _tokens_of_rlhf(output: Path) -> float | None:
    file = output / "rlhf/metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    counts = [json.loads(line).get("num_tokens") for line in lines if line.endswith("}")]
    return max((count for count in counts if count), default=None)


def _tokens_of_trl(process: subprocess.Popen[str]) -> float | None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("{'loss'"):
        return None
    return float(ast.literal_eval(line)["num_tokens"])


if __name__ == "__main__":
    main()
