"""PPO raises a reward that is known: python benchmarks/ppo_words.py MODEL [SEEDS].

MODEL is a folder of the 260k-parameter stories model. It goes on from the beginnings of stories; the reward is the
share of 8 times that it says "the" within 48 tokens. Told are seconds from start to end, the true score of held-out
beginnings before and after with the 95 % interval of the gain, and the KL from the reference, which has a budget.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import BIN, ENVIRONMENT

REWARD = """\
def says_the(completions, **_):
    return [min(1.0, text.lower().split().count("the") / 8) for text in completions]
"""
BEGINNINGS = ("Once upon a time", "One day", "Lily went to", "Tom saw", "The dog and", "Mom said to", "In the park",
              "A big cat and", "There was", "The boy liked")  # fmt: skip
NAMES = ("Tim", "Sue", "Ben", "Anna", "Max", "Mia", "Sam", "Lucy")
BUDGET = 20
RECIPE = f"""\
method: ppo
dataset_name: prompts.jsonl
reward_funcs: rewards.py:says_the
test_split_size: 24
response_length: 48
kl_coef: 0.02
stop_at_kl: {BUDGET}
use_peft: true
lora_r: 16
lora_alpha: 32
lora_target_modules: all-linear
learning_rate: 1.0e-3
per_device_train_batch_size: 32
total_episodes: 1600
save_strategy: "no"
use_cpu: true
"""


def main() -> None:
    """Print what came of each seed."""
    model, seeds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rewards.py").write_text(REWARD)
        rows = [{"text": f"{beginning} {who}"} for beginning in BEGINNINGS for who in NAMES]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "recipe.yaml").write_text(RECIPE + f"model_name_or_path: {model}\n")
        for seed in range(seeds):
            train(folder, seed)


def train(folder: Path, seed: int) -> None:
    """One run, as a user would start it."""
    command = [str(BIN / "rlhf"), "ppo", "recipe.yaml", "--seed", str(seed), "--output_dir", f"run-{seed}"]
    started = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": str(os.cpu_count())},
    )
    seconds = time.perf_counter() - started
    found = json.loads((folder / f"run-{seed}/eval_results.json").read_text())
    print(
        f"seed {seed}: {seconds:.0f} s, true score {found['eval_reward_reference']:.3f} -> {found['eval_reward']:.3f}, "
        f"gain {found['eval_gain']:.3f} [{found['eval_gain_low']:.3f}, {found['eval_gain_high']:.3f}], "
        f"KL {found['eval_kl']:.1f} of {BUDGET} nats",
        flush=True,
    )


if __name__ == "__main__":
    main()
