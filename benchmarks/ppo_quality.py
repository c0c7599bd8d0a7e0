"""What PPO reaches beside TRL's last, at equal episodes: python benchmarks/ppo_quality.py MODEL --trl DIR [--seeds N].

MODEL is a folder of the 260k-parameter stories model, DIR the unpacked wheel of TRL 1.12.0 (see trl_ppo.py). Both go
on from the same beginnings of stories for 48 tokens; the reward is the share of 8 times that the token for "the" comes,
the same number for both. Told are reward and KL from the reference over the last ten of fifty rollouts of 32, for each
seed, with LoRA and with all weights: with the value as a head on the policy's trunk, and with a critic of its own,
which is what TRL has in every mode.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measure import BIN
from trl_ppo import Wanted, run_quietly, run_trl

TOKEN = 265
"""`▁the` in the vocabulary of the stories model."""
REWARD = f"""\
def counts_the(completion_ids, **_):
    return [min(1.0, ids.count({TOKEN}) / 8) for ids in completion_ids]
"""
BEGINNINGS = ("Once upon a time", "One day", "Lily went to", "Tom saw", "A dog and", "Mom said to", "In a park",
              "A big cat and", "There was", "A boy liked")  # fmt: skip
NAMES = ("Tim", "Sue", "Ben", "Anna", "Max", "Mia", "Sam", "Lucy")
RESPONSE, EPISODES, EPOCHS, ROLLOUTS, LAST, KL_COEF = 48, 32, 4, 50, 10, 0.02
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
MODES: dict[str, dict[str, Any]] = {
    "LoRA, shared trunk": {"learning_rate": 1e-3, "lora": LORA, "value_model": "shared"},
    "LoRA, separate critic": {"learning_rate": 1e-3, "lora": LORA, "value_model": "separate"},
    "all weights, shared trunk": {"learning_rate": 3e-4, "lora": None, "value_model": "shared"},
    "all weights, separate critic": {"learning_rate": 3e-4, "lora": None, "value_model": "separate"},
}


def main() -> None:
    """Print what each reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trl", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rewards.py").write_text(REWARD)
        rows = [{"text": f"{beginning} {who}"} for beginning in BEGINNINGS for who in NAMES]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for mode in MODES:
            found: dict[str, list[tuple[float, float]]] = {"rlhf": [], "trl": []}
            for seed in range(asked.seeds):
                found["rlhf"].append(reached(train(mode, asked.model.resolve(), folder, seed)))
                wanted = as_trl(mode, asked.model.resolve(), folder, seed)
                found["trl"].append(reached(run_trl(wanted, asked.trl)["logs"]))
            for tool, runs in found.items():
                rewards, nats = (" ".join(f"{run[part]:5.2f}" for run in runs) for part in (0, 1))
                middle = [statistics.fmean(run[part] for run in runs) for part in (0, 1)]
                print(
                    f"{mode:<30} {tool:<5} reward {middle[0]:.2f} ({rewards})  KL {middle[1]:.1f} nats ({nats})",
                    flush=True,
                )


def reached(logs: list[dict[str, float]]) -> tuple[float, float]:
    """Reward and KL of the last rollouts."""
    reward, nats = (statistics.fmean(log[key] for log in logs[-LAST:]) for key in ("objective/scores", "objective/kl"))
    return reward, nats


def train(mode: str, model: Path, folder: Path, seed: int) -> list[dict[str, float]]:
    """One run of `rlhf ppo`; its rollouts' metrics."""
    settings = MODES[mode]
    recipe: dict[str, Any] = {
        "model_name_or_path": str(model),
        "dataset_name": str(folder / "prompts.jsonl"),
        "reward_funcs": str(folder / "rewards.py:counts_the"),
        "value_model": settings["value_model"],
        "learning_rate": settings["learning_rate"],
        "response_length": RESPONSE,
        "stop_token": None,
        "num_ppo_epochs": EPOCHS,
        "kl_coef": KL_COEF,
        "per_device_train_batch_size": EPISODES,
        "total_episodes": ROLLOUTS * EPISODES,
        "seed": seed,
        "use_cpu": True,
        "bf16": True,
        "save_strategy": "no",
    }
    if settings["lora"]:
        recipe |= {"use_peft": True, "lora_r": LORA["r"], "lora_alpha": LORA["lora_alpha"],
                   "lora_target_modules": LORA["target_modules"]}  # fmt: skip
    name = f"{mode.replace(' ', '-').replace(',', '')}-{seed}"
    (folder / f"{name}.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    command = [str(BIN / "rlhf"), "ppo", str(folder / f"{name}.yaml"), "--output_dir", str(folder / name)]
    run_quietly(command, {"OMP_NUM_THREADS": str(os.cpu_count())})
    logs = [json.loads(line) for line in (folder / name / "rlhf/metrics.jsonl").read_text().splitlines()]
    return [log for log in logs if "objective/scores" in log]


def as_trl(mode: str, model: Path, folder: Path, seed: int) -> Wanted:
    """The run of TRL's that does the same."""
    return Wanted(
        policy=str(model), reward=str(TOKEN), prompts=str(folder / "prompts.jsonl"), lora=MODES[mode]["lora"],
        learning_rate=MODES[mode]["learning_rate"], response=RESPONSE, episodes=EPISODES, parts=1, epochs=EPOCHS,
        rollouts=ROLLOUTS, seed=seed, kl_coef=KL_COEF,
    )  # fmt: skip


if __name__ == "__main__":
    main()
