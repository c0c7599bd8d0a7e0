"""Tokens a second in steady state, beside `trl sft`: python benchmarks/throughput.py MODEL ROWS.jsonl [ROUNDS].

MODEL is a chat model folder, ROWS holds conversations. Two comparisons: every setting the same, threads included, and
each tool left to its own defaults (but for `use_cpu: true`, without which `trl sft` does not start on a machine without
a GPU); accelerate, which `trl sft` starts, leaves a process one thread by default.
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
from pathlib import Path

from measure import BIN, ENVIRONMENT

SHARED = {
    "max_length": 1024, "packing": True, "per_device_train_batch_size": 2, "max_steps": 8, "logging_steps": 1,
    "use_peft": True, "save_strategy": "no", "report_to": "none", "use_cpu": True,
}  # fmt: skip
SAME = {
    **SHARED, "bf16": True, "gradient_checkpointing": False, "dtype": "float32", "assistant_only_loss": False,
    "dataloader_pin_memory": False,
}  # fmt: skip
SKIPPED_STEPS = 2


def main() -> None:
    """Print tokens a second of both tools, and the ratio of each round."""
    model, rows = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        shutil.copy(rows, folder / "data/train.jsonl")
        threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
        for title, settings, environment in (("same settings", SAME, threads), ("own defaults", SHARED, {})):
            keys = {"model_name_or_path": str(model), "dataset_name": "data", **settings}
            (folder / "recipe.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
            speeds: dict[str, list[float]] = {"rlhf": [], "trl": []}
            for _ in range(rounds):
                for tool, values in speeds.items():
                    values.append(tokens_per_s(tool, folder, environment))
            ratios = [ours / theirs for ours, theirs in zip(speeds["rlhf"], speeds["trl"], strict=True)]
            for tool, values in speeds.items():
                shown = ", ".join(f"{v:.0f}" for v in values)
                print(f"{title:<14} {tool:<5} {statistics.median(values):7.0f} tokens/s  ({shown})")
            print(f"{title:<14} rlhf / trl: {statistics.median(ratios):.2f}", flush=True)


def tokens_per_s(tool: str, folder: Path, environment: dict[str, str]) -> float:
    """Train a few steps with one tool; the first ones, which warm up, do not count."""
    output = folder / f"out-{tool}"
    shutil.rmtree(output, ignore_errors=True)
    config = ["recipe.yaml"] if tool == "rlhf" else ["--config", "recipe.yaml", "--disable_tqdm", "true"]
    command = [str(BIN / tool), "sft", *config, "--output_dir", str(output)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env={**ENVIRONMENT, **environment},
    )
    seen: list[tuple[float, float]] = []
    while process.poll() is None:
        tokens = _tokens_of_rlhf(output) if tool == "rlhf" else _tokens_of_trl(process)
        if tokens and (not seen or tokens > seen[-1][1]):
            seen.append((time.perf_counter(), tokens))
        if tool == "rlhf":
            time.sleep(0.005)
    if len(seen) < SKIPPED_STEPS + 2:
        raise SystemExit(f"{' '.join(command)} logged only {len(seen)} steps")
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
