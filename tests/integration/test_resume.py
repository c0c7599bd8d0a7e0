"""A run that was killed and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = 8
# fmt: off
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora with dropout": {"use_peft": True, "lora_dropout": 0.2, "lora_target_modules": "all-linear"},
    "4-bit": {"use_peft": True, "load_in_4bit": True, "lora_dropout": 0.1, "lora_target_modules": "all-linear"},
    "packed": {"packing": True, "use_peft": True, "lora_dropout": 0.1, "lora_target_modules": "all-linear"},
    "evaluated, the best kept, rows read by a worker": {
        "eval_strategy": "steps", "eval_steps": 1, "test_split_size": 0.2, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss", "greater_is_better": False, "dataloader_num_workers": 1,
    },
    "accumulation across epochs": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 3},
    "a reward model": {"command": "train-reward", "test_split_size": 0.2, "lr_scheduler_type": "cosine"},
    "a 4-bit ensemble": {
        "command": "train-reward", "ensemble_size": 2, "use_peft": True, "load_in_4bit": True, "lora_dropout": 0.1,
        "lora_target_modules": "all-linear", "disable_dropout": False, "max_steps": 4,
    },
    "preferences, an adapter continued": {"command": "dpo", "model_name_or_path": "taught", "lora_dropout": 0.05},
    "preferences, their reference computed before": {"command": "dpo", "precompute_ref_log_probs": True},
    "rollouts of a 4-bit policy": {
        "command": "ppo", "use_peft": True, "load_in_4bit": True, "lora_target_modules": "all-linear", "kl_target": 1.0,
        "num_mini_batches": 2, "per_device_train_batch_size": 2, "logging_steps": 3, "learning_rate": 1e-2,
    },
    "rollouts of all weights, a critic, the best kept": {
        "command": "ppo", "value_model": "separate", "target_kl": 0.01, "learning_rate": 3e-3, "eval_strategy": "steps",
        "eval_steps": 1, "test_split_size": 2, "load_best_model_at_end": True, "reward_clip_range": 1.0,
    },
}
# fmt: on


def weights(run: Path) -> bytes:
    files = sorted([*run.glob("*.safetensors"), *run.glob("members/*/*.safetensors")])
    assert files
    return b"".join(file.read_bytes() for file in files)


def losses(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "rlhf/metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def metrics(run: Path) -> list[dict[str, float]]:
    """All that was logged in steps, but for what a clock says; and TRL counts tokens anew on a resume."""
    clocks = ("time/", "eps", "tokens_per_s", "num_tokens", "eval_num_tokens")
    ends = ("_runtime", "_per_second", "_preparation_time")
    records = [json.loads(line) for line in (run / "rlhf/metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if not name.startswith(clocks) and not name.endswith(ends)}
        for record in records
        if "train_runtime" not in record
    ]


@pytest.fixture
def prepared_way(
    rlhf: Callable[..., Any],
    write_recipe: Callable[..., Path],
    write_pairs_recipe: Callable[..., Path],
    write_ppo_recipe: Callable[..., Path],
) -> Callable[[str], tuple[str, str]]:
    """The command and the recipe of a way, and what it starts from."""

    def prepare(way: str) -> tuple[str, str]:
        keys = {"max_steps": STEPS, "save_steps": 1, "save_total_limit": 2, **WAYS[way]}
        command = keys.pop("command", "sft")
        if keys.get("model_name_or_path") == "taught":
            adapter = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.05, "max_steps": 2}
            assert rlhf("sft", str(write_recipe(**adapter)), "--output_dir", "taught").code == 0
        write = {"sft": write_recipe, "ppo": write_ppo_recipe}.get(command, write_pairs_recipe)
        return command, str(write(**keys))

    return prepare


def card(run: Path) -> Any:
    file = run / "reward_card.json"
    return json.loads(file.read_text())["report"] if file.exists() else None


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_killed_runs_resume_to_the_same_bits(
    way: str,
    kills: int,
    start: Callable[..., Any],
    rlhf: Callable[..., Any],
    prepared_way: Callable[[str], tuple[str, str]],
    tmp_path: Path,
) -> None:
    command, recipe = prepared_way(way)
    whole = rlhf(command, recipe, "--output_dir", "whole")
    assert whole.code == 0, whole.err
    steps = WAYS[way].get("max_steps", STEPS)
    every = WAYS[way].get("logging_steps", 1)
    assert [step for step, _ in losses(tmp_path / "whole")] == list(range(every, steps + 1, every))

    moments = random.Random(f"{way} {kills}")
    for attempt in range(kills):
        output = f"killed-{attempt}"
        killed = start(command, recipe, "--output_dir", output)
        time.sleep(moments.uniform(0.05, 0.95) * whole.elapsed_s)
        killed.send(signal.SIGKILL)
        assert killed.wait().code in (-signal.SIGKILL, 0)
        resumed = rlhf(command, recipe, "--output_dir", output, "--resume")
        assert resumed.code == 0, resumed.err
        assert weights(tmp_path / output) == weights(tmp_path / "whole"), f"{way}, attempt {attempt}:\n{resumed.err}"
        assert metrics(tmp_path / output) == metrics(tmp_path / "whole")
        assert card(tmp_path / output) == card(tmp_path / "whole")


@pytest.mark.parametrize("way", [way for way in WAYS if "ensemble" not in way])
def test_a_run_killed_while_it_saves_its_model_trains_no_step_more(
    way: str, rlhf: Callable[..., Any], prepared_way: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    command, recipe = prepared_way(way)
    assert rlhf(command, recipe).code == 0
    run = tmp_path / "run"
    before, results = weights(run), (run / "all_results.json").read_text()
    for file in (*run.glob("*.safetensors"), *run.glob("*_results.json"), run / "trainer_state.json"):
        file.unlink()
    record = json.loads((run / "rlhf/run.json").read_text())
    ended = {**record, "status": "running", "steps_done": None, "members_trained": None}
    (run / "rlhf/run.json").write_text(json.dumps(ended))
    resumed = rlhf(command, recipe, "--resume")
    assert resumed.code == 0, resumed.err
    assert weights(run) == before
    every = WAYS[way].get("logging_steps", 1)
    assert [step for step, _ in losses(run)] == list(range(every, STEPS + 1, every))
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == STEPS
    if "test_split_size" in WAYS[way]:
        again = json.loads((run / "all_results.json").read_text())
        name = next(name for name in ("eval_loss", "eval_reward") if name in again)
        assert again[name] == json.loads(results)[name]
