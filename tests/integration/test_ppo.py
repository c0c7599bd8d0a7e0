"""`rlhf ppo`: what it starts from, what it measures, what it learns, and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.test_processes import TWO
from tests.integration.test_resume import weights

LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "separate critic": {"value_model": "separate"},
    "adapter, separate critic": {"value_model": "separate", **LORA},
    "lora": LORA,
    "an adapter continued": {"model_name_or_path": "taught"},
    "4-bit": {**LORA, "load_in_4bit": True},
    "minibatches": {"num_mini_batches": 2, "per_device_train_batch_size": 2},
}


def logs(run: Path, name: str = "objective/scores") -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "rlhf/metrics.jsonl").read_text().splitlines()]
    return [record for record in records if name in record]


@pytest.fixture
def taught(rlhf: Callable[..., Any], write_recipe: Callable[..., Path]) -> None:
    """An adapter that was trained before."""
    keys = {**LORA, "max_steps": 2, "lora_dropout": 0.1, "learning_rate": 1e-2}
    assert rlhf("sft", str(write_recipe(**keys)), "--output_dir", "taught").code == 0


@pytest.fixture
def reward_model(rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path]) -> str:
    """An adapter and a score on the tiny base, with dropout in training."""
    keys = {**LORA, "lora_dropout": 0.3, "test_split_size": 0.25, "split_by": "prompt", "learning_rate": 1e-2}
    done = rlhf("train-reward", str(write_pairs_recipe(**keys)), "--output_dir", "reward")
    assert done.code == 0, done.err
    return "reward"


@pytest.mark.usefixtures("taught")
@pytest.mark.parametrize(("way", "bf16"), [(way, number % 2 == 0) for number, way in enumerate(WAYS)])
def test_at_first_the_ratio_is_1_and_the_kl_0(
    way: str, bf16: bool, rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever the policy is made of; and then it moves."""
    recipe = write_ppo_recipe(bf16=bf16, logging_steps=1, learning_rate=1e-2, **WAYS[way])
    done = rlhf("ppo", str(recipe))
    assert done.code == 0, done.err
    steps = logs(tmp_path / "run", "val/ratio")
    first = steps[0]
    assert (first["val/ratio"], first["policy/approxkl_avg"], first["policy/clipfrac_avg"]) == (1, 0, 0)
    # Whitened advantages have the mean 0, and at the ratio 1 the loss is their mean.
    assert way == "minibatches" or first["loss/policy_avg"] == pytest.approx(0, abs=1e-6)
    assert all(step["policy/approxkl_avg"] > 0 for step in steps[1::2] if way != "minibatches")
    rollouts = logs(tmp_path / "run")
    assert (rollouts[0]["objective/kl"], rollouts[0]["objective/kl_k3"]) == (0, 0)
    assert rollouts[1]["objective/kl_k3"] > 0
    assert [rollout["episode"] for rollout in rollouts] == [8, 16]


@pytest.mark.usefixtures("taught")
@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_loads_without_us(
    way: str, rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path, tiny_base: Path
) -> None:
    """The policy alone, with its end token, and its value beside it."""
    done = rlhf("ppo", str(write_ppo_recipe(**WAYS[way])))
    assert done.code == 0, done.err
    run = tmp_path / "run"
    if (run / "adapter_config.json").exists():
        assert not [path for path in run.iterdir() if path.is_dir() and path.name in ("ref", "default")]
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), run)
        assert list(model.peft_config) == ["default"]
    else:
        model = AutoModelForCausalLM.from_pretrained(run)
        start = load_file(tiny_base / "model.safetensors")
        assert any((start[name] != tensor).any() for name, tensor in load_file(run / "model.safetensors").items())
        assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(run).eos_token_id
    assert load_file(run / "value_head.safetensors")["weight"].abs().sum() > 0
    assert (run / "value").exists() == ("separate critic" in way)
    if "separate critic" in way:
        before, after = load_file(tiny_base / "model.safetensors"), load_file(run / "value/model.safetensors")
        assert any((before[f"model.{name}"] != tensor).any() for name, tensor in after.items())
    assert rlhf("generate", "run", "--prompt", "2+2?", "--max-new-tokens", "3").code == 0


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_reward_within_reach_is_reached_and_not_without_learning(
    seed: int, rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Half for every fifth token, half for not ending, where a fifth of the tokens end: both must be learnt."""
    (tmp_path / "rewards.py").write_text(
        "def both(completion_ids, **_):\n"
        "    shares = [sum(token % 5 == 0 for token in ids) / len(ids) for ids in completion_ids]\n"
        "    return [share / 2 + (len(ids) == 12) / 2 for share, ids in zip(shares, completion_ids)]\n"
    )
    keys = {
        "reward_funcs": "rewards.py:both", "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1,
        "num_ppo_epochs": 4, "total_episodes": 32 * 50, "learning_rate": 5e-3, "seed": seed, "kl_coef": 0.0,
        "lr_scheduler_type": "constant", "bf16": False, "save_strategy": "no", "stop_token_id": list(range(100, 200)),
    }  # fmt: skip
    done = rlhf("ppo", str(write_ppo_recipe(**keys)))
    assert done.code == 0, done.err
    scores = [log["objective/scores"] for log in logs(tmp_path / "run")]
    assert scores[0] < 0.3
    assert sum(scores[-5:]) / 5 > 0.9, scores
    if seed == 1:
        assert rlhf("ppo", str(write_ppo_recipe(**{**keys, "learning_rate": 0.0})), "--output_dir", "still").code == 0
        still = [log["objective/scores"] for log in logs(tmp_path / "still")]
        assert sum(still[-5:]) / 5 < 0.3


def test_a_reward_model_lengthens_answers_where_it_likes_them_long(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], write_ppo_recipe: Callable[..., Path],
    longer_is_better: Path, tmp_path: Path,
) -> None:  # fmt: skip
    taught = rlhf(
        "train-reward",
        str(write_recipe(dataset_name=str(longer_is_better), max_length=256, max_steps=30, test_split_size=16, **LORA)),
        "--output_dir", "reward", "--learning_rate", "1e-2",
    )  # fmt: skip
    assert taught.code == 0, taught.err
    recipe = write_ppo_recipe(
        reward_funcs=None, reward_model_path="reward", learning_rate=1e-2, response_length=24, total_episodes=8 * 24,
        kl_coef=0.01, test_split_size=2, stop_token_id=list(range(100, 200)), **LORA,
    )  # fmt: skip
    done = rlhf("ppo", str(recipe))
    assert done.code == 0, done.err
    assert "reward                    reward, adapter and score on the policy's base" in done.err
    found = logs(tmp_path / "run")
    assert found[-1]["completions/mean_length"] > found[0]["completions/mean_length"]
    assert found[-1]["objective/scores"] > found[0]["objective/scores"] + 0.3


def test_the_plan_tells_what_is_shared(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], reward_model: str
) -> None:
    keys = {"reward_model_path": reward_model, "reward_funcs": None}
    shared = rlhf("ppo", str(write_ppo_recipe(**LORA, **keys)), "--dry-run")
    assert "reward                    reward, adapter and score on the policy's base" in shared.out
    assert "reference                 the policy with its adapter off" in shared.out
    own = rlhf("ppo", str(write_ppo_recipe(**keys)), "--dry-run")
    assert "reward                    reward, a model of its own" in own.out
    assert "reference                 a frozen copy of the policy" in own.out
    assert "reward weights" in own.out
    critic = rlhf("ppo", str(write_ppo_recipe(value_model="separate", **keys)), "--dry-run")
    assert "value                     a model of its own that begins as reward" in critic.out
    assert "value optimizer" in critic.out


def test_held_out_prompts_are_answered_compared_and_written_down(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_ppo_recipe(
        test_split_size=4, eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True,
        learning_rate=1e-2, **LORA,
    )  # fmt: skip
    done = rlhf("ppo", str(recipe))
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run/eval_results.json").read_text())
    assert results["eval_gain"] == pytest.approx(results["eval_reward"] - results["eval_reward_reference"])
    assert results["eval_gain_low"] <= results["eval_gain"] <= results["eval_gain_high"]
    samples = Dataset.from_parquet(str(tmp_path / "run/rlhf/samples/step-4.parquet"))
    assert len(samples) == 4
    for row in samples:
        share = row["response"].count("e") / max(1, len(row["response"]))
        assert row["reward"] == pytest.approx(share)
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    assert state["best_metric"] == max(log["eval_reward"] for log in logs(tmp_path / "run", "eval_reward"))


def test_the_kl_budget_stops_a_run_and_names_the_best_checkpoint(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_ppo_recipe(
        stop_at_kl=0.5, learning_rate=3e-2, total_episodes=400, save_steps=2, test_split_size=2,
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    stopped = rlhf("ppo", str(recipe))
    assert stopped.code == 6
    assert "beyond `stop_at_kl: 0.5`" in stopped.err
    assert "is the best checkpoint by held-out reward" in stopped.err
    record = json.loads((tmp_path / "run/rlhf/run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("stopped", 6)


def test_a_guard_that_is_told_to_stops(rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path]) -> None:
    keys = {"learning_rate": 0.1, "total_episodes": 400, "kl_coef": 0.0, "num_ppo_epochs": 4}
    stopped = rlhf("ppo", str(write_ppo_recipe(guards={"clip_fraction": "stop"}, **keys)))
    assert stopped.code == 6
    assert "of the tokens are clipped" in stopped.err
    warned = rlhf("ppo", str(write_ppo_recipe(**{**keys, "total_episodes": 80}, output_dir="warned")))
    assert warned.code == 0, warned.err
    assert "of the tokens are clipped" in warned.err


def test_two_processes_train_what_one_does(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Rollouts, whitening, minibatches and steps are those of one process, up to the order of sums."""
    write_ppo_recipe(
        bf16=False, optim="sgd", learning_rate=0.3, test_split_size=3, gradient_accumulation_steps=1,
        num_mini_batches=2, per_device_train_batch_size=2, max_grad_norm=0,
    )  # fmt: skip
    two = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "ppo", "ppo.yaml", "--num-processes", "2", "--output_dir", "two"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=TWO,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    one = rlhf("ppo", "ppo.yaml", "--output_dir", "one", "--gradient_accumulation_steps", "2")
    assert one.code == 0, one.err
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-6
    timed = ("eps", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    for ours, theirs in zip(logs(tmp_path / "one"), logs(tmp_path / "two"), strict=True):
        for name in ours.keys() - set(timed):
            assert name.startswith("time/") or ours[name] == pytest.approx(theirs[name], abs=1e-4), name
    results = [json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("one", "two")]
    assert results[0]["eval_gain"] == pytest.approx(results[1]["eval_gain"], abs=1e-4)


def test_a_reward_that_fails_in_one_process_ends_both(write_ppo_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_ppo_recipe(reward_funcs="failing.py:fail")
    (tmp_path / "failing.py").write_text(
        "import os\n\n\ndef fail(completions, **_):\n"
        "    if os.environ['RANK'] == '1':\n        raise ValueError('not here')\n    return [0.0] * len(completions)\n"
    )
    two = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "ppo", "ppo.yaml", "--num-processes", "2"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=TWO, timeout=100,
    )  # fmt: skip
    assert two.returncode == 2, two.stderr
    assert "the reward function `fail` raised ValueError: not here" in two.stderr
    assert json.loads((tmp_path / "run/rlhf/run.json").read_text())["exit_code"] == 2


def test_few_prompts_go_round_and_every_rollout_has_its_steps(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Three prompts for rollouts of eight; and the number of episodes is no multiple of a rollout."""
    recipe = write_ppo_recipe(total_episodes=20, logging_steps=1, num_mini_batches=2, per_device_train_batch_size=2)
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines()[:3]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    done = rlhf("ppo", str(recipe))
    assert done.code == 0, done.err
    assert "12 on 3 rollouts of 8 episodes, each trained on 2 times (4 more than `total_episodes`)" in done.err
    assert [log["step"] for log in logs(tmp_path / "run", "val/ratio")] == list(range(1, 13))
    assert [log["step"] for log in logs(tmp_path / "run")] == [1, 5, 9]


def test_clipping_and_checkpointing_take_effect(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    keys = {"bf16": False, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "num_ppo_epochs": 1}
    for name, more in (
        ("free", {}),
        ("clipped", {"max_grad_norm": 1e-9}),
        ("again", {"activation_checkpointing": True}),
    ):
        done = rlhf("ppo", str(write_ppo_recipe(**keys, **more, total_episodes=8, output_dir=name)))
        assert done.code == 0, done.err
    assert weights(tmp_path / "free") == weights(tmp_path / "again")
    start = load_file(tmp_path / "free/model.safetensors")
    clipped = load_file(tmp_path / "clipped/model.safetensors")
    assert max(float((start[name] - clipped[name]).abs().max()) for name in start) > 1e-4
    assert logs(tmp_path / "clipped")[0]["grad_norm"] > 1e-3


def test_a_separate_critic_begins_as_the_normalised_reward_model(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], reward_model: str, tmp_path: Path
) -> None:
    recipe = write_ppo_recipe(
        reward_funcs=None, reward_model_path=reward_model, value_model="separate", learning_rate=0.0, bf16=False,
        total_episodes=8, num_ppo_epochs=1,
    )  # fmt: skip
    done = rlhf("ppo", str(recipe))
    assert done.code == 0, done.err
    stamp = json.loads((tmp_path / "reward/reward_card.json").read_text())["scores"]
    head = load_file(tmp_path / "run/value_head.safetensors")
    trained = load_file(tmp_path / "reward/adapter_model.safetensors")["base_model.model.score.weight"]
    assert head["weight"] == pytest.approx(trained / stamp["std"], abs=1e-6)
    assert float(head["bias"]) == pytest.approx(-stamp["mean"] / stamp["std"], rel=1e-6)


def test_functions_get_the_columns_of_their_row(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """As GSM8K is laid out: a question is asked, and its answer judges; unread columns come along."""
    rows = [{"question": f"{n}+1?", "answer": f"so\n#### {n + 1}", "level": n} for n in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.py").write_text(
        "import json\n\n\ndef judge(prompts, completions, answer, level, **rest):\n"
        "    assert set(rest) == {'completion_ids', 'trainer_state', 'question'}, rest\n"
        "    for prompt, right, number in zip(prompts, answer, level):\n"
        "        assert prompt == [{'role': 'user', 'content': f'{number}+1?'}]\n"
        "        assert right.endswith(f'#### {number + 1}')\n"
        "    return [float(number) for number in level]\n"
    )
    recipe = write_ppo_recipe(dataset_name="sums.jsonl", reward_funcs="judge.py:judge", total_episodes=8)
    done = rlhf("ppo", str(recipe))
    assert done.code == 0, done.err
    assert logs(tmp_path / "run")[0]["objective/scores"] == pytest.approx(3.5)


def test_prompts_that_repeat_are_told(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_ppo_recipe(test_split_size=3)
    rows = [json.dumps({"prompt": "the same"}), *[json.dumps({"prompt": f"{n}?"}) for n in range(2)]] * 4
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    told = rlhf("ppo", str(recipe), "--dry-run").err
    assert "6 of 9 prompts are there before" in told
    assert "3 of the held-out prompts are trained on too" in told


def test_an_epoch_is_a_round_of_the_prompts(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Ten prompts in rollouts of eight: an epoch is two rollouts of two steps."""
    recipe = write_ppo_recipe(save_strategy="epoch", total_episodes=48)
    done = rlhf("ppo", str(recipe))
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-12", "checkpoint-4", "checkpoint-8",
    ]  # fmt: skip
    assert [log["epoch"] for log in logs(tmp_path / "run")] == pytest.approx([0.8 * n for n in range(1, 7)])
