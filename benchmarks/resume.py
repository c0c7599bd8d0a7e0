"""Kill a 4-bit run of a real model, resume it, and compare the bits: resume.py MODEL ROWS.jsonl [KILLS]."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import BIN, ENVIRONMENT

RECIPE = """\
method: sft
model_name_or_path: {model}
dataset_name: {rows}
use_peft: true
load_in_4bit: true
lora_target_modules: all-linear
lora_dropout: 0.1
packing: true
max_length: 256
per_device_train_batch_size: 1
max_steps: 20
learning_rate: 2.0e-4
logging_steps: 1
save_steps: 2
save_total_limit: 2
"""


def main() -> None:
    """Train twenty steps whole, then killed and resumed, and say whether the adapters are equal."""
    model, rows = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    kills = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    folder = Path(tempfile.mkdtemp())
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, rows=rows))
    started = time.monotonic()
    train(recipe, folder / "whole").wait()
    elapsed_s = time.monotonic() - started
    print(f"twenty 4-bit steps: {elapsed_s:.0f} s", flush=True)
    moments = random.Random(0)
    for kill in range(kills):
        output = folder / f"killed-{kill}"
        process = train(recipe, output)
        time.sleep(moments.uniform(0.2, 0.95) * elapsed_s)
        process.kill()
        process.wait()
        metrics = output / "rlhf/metrics.jsonl"
        steps = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        train(recipe, output, "--resume").wait()
        equal = adapter(output) == adapter(folder / "whole")
        print(f"killed after step {steps}, resumed: {'equal bit for bit' if equal else 'DIFFERENT'}", flush=True)


def train(recipe: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a run."""
    command = [str(BIN / "rlhf"), "sft", str(recipe), "--output_dir", str(output), *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)


def adapter(output: Path) -> bytes:
    """The trained weights."""
    return (output / "adapter_model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
