"""What DPO learns of held-out pairs: python benchmarks/preferences.py MODEL PAIRS.jsonl [KEY=VALUE …].

MODEL is trained on PAIRS with a quarter of the prompts held out. A pair counts as right when the policy has raised the
chosen answer's log-probability over the reference's by more than the rejected one's; before training every pair is a
tie, so that the accuracy is one half. Its standard error is over prompts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import BIN, ENVIRONMENT
from transformers import AutoModelForCausalLM

from rlhf_cli.machine import quietly
from rlhf_cli.methods import METHODS
from rlhf_cli.model_source import find_source
from rlhf_cli.prepare import gather
from rlhf_cli.recipe import read_recipe
from rlhf_cli.rows import prompt_text
from rlhf_cli.scores import mean_by_group, wins

SETTINGS = {
    "test_split_size": 0.25, "split_by": "prompt", "per_device_train_batch_size": 16, "num_train_epochs": 3,
    "learning_rate": 1e-4, "lr_scheduler_type": "cosine", "beta": 0.1, "logging_steps": 5, "save_strategy": "no",
}  # fmt: skip


def main() -> None:
    """Train, and print the accuracy with its interval, and how long it took."""
    model, pairs = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    extra = dict(argument.split("=", 1) for argument in sys.argv[3:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys: dict[str, Any] = {
            **SETTINGS, "model_name_or_path": str(model), "dataset_name": str(pairs), "output_dir": str(folder / "run"),
            **{key: json.loads(value) for key, value in extra.items()},
        }  # fmt: skip
        path = folder / "recipe.yaml"
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
        started = time.perf_counter()
        subprocess.run([str(BIN / "rlhf"), "dpo", str(path)], check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        elapsed = time.perf_counter() - started
        (method,) = (method for method in METHODS if method.command == "dpo")
        recipe = read_recipe(path, method="dpo")
        with quietly():
            material = gather(recipe, method, find_source(recipe, method.trains))
            margins = compared(folder / "run", model, material.test.dataset)
        rows = material.rows.test.select(material.test.kept)
        found = mean_by_group(wins(margins), [prompt_text(row) for row in rows["row"]], seed=0, is_share=True)
        first = json.loads((folder / "run/rlhf/metrics.jsonl").read_text().splitlines()[0])["loss"]
    errors = (found.value - 0.5) / ((found.high - found.low) / 3.92)
    print(f"held-out accuracy 0.500 before, {found.as_text()} after: {errors:.1f} standard errors over prompts")
    print(f"{found.n} pairs, {found.groups} prompts; first loss logged {first:.4f}; {elapsed:.0f} s from start to end")


def compared(run: Path, base: Path, dataset: Any) -> np.ndarray:
    """How much more the policy has raised each chosen answer than the rejected one, in nats."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (run, base))
    sides = []
    for side in ("chosen_ids", "rejected_ids"):
        raised = [
            log_probability(policy, pair["prompt_ids"], pair[side])
            - log_probability(reference, pair["prompt_ids"], pair[side])
            for pair in dataset
        ]
        sides.append(np.array(raised))
    return sides[0] - sides[1]


@torch.inference_mode()
def log_probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Of an answer behind its prompt, in nats."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())


if __name__ == "__main__":
    main()
