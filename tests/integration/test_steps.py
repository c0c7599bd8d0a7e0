"""The plan's steps are those that transformers trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import Trainer

from rlhf_cli.data import Encodings
from rlhf_cli.methods import METHODS
from rlhf_cli.models import load_model
from rlhf_cli.prepare import prepare
from rlhf_cli.recipe import read_recipe

SETTINGS: list[dict[str, Any]] = [
    {},
    {"dataloader_drop_last": True, "per_device_train_batch_size": 3},
    {"dataloader_drop_last": True, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    {"gradient_accumulation_steps": 3},
    {"gradient_accumulation_steps": 50},
    {"num_train_epochs": 0.3},
    {"num_train_epochs": 2.5, "gradient_accumulation_steps": 7, "per_device_train_batch_size": 3},
    {"num_train_epochs": 1.7, "packing": True, "per_device_train_batch_size": 2},
    {"max_steps": 5, "num_train_epochs": 9},
    {"packing": True, "shuffle_dataset": True},
    {"packing": True, "packing_strategy": "wrapped", "shuffle_dataset": True},
    {"train_sampling_strategy": "group_by_length"},
    {"test_split_size": 0.3, "eval_packing": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=json.dumps)
def test_the_plan_has_the_steps_of_the_trainer(
    settings: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(write_recipe(**{"max_steps": None, "use_cpu": True, **settings}), method="sft")
    prepared = prepare(recipe, METHODS[0])
    material, plan = prepared.material, prepared.plan
    policy = load_model(recipe, plan, material.source, material.tokenizer)
    data = Encodings(material.train.dataset, material.test.dataset if material.test else None)
    trainer: Trainer = METHODS[0].build_trainer(prepared.config, policy, data)
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert len(trainer.train_dataset) == plan.train.examples
    assert (plan.steps, plan.steps_per_epoch) == (values[-1], values[1])
    if data.test is not None:
        assert len(trainer.eval_dataset) == material.test.counts.examples


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_several_processes_share_the_batches_as_planned(
    drop_last: bool, processes: int, batch: int, tmp_path: Path
) -> None:
    from tests.unit.test_keys import plan_of

    sampler = BatchSampler(SequentialSampler(range(40)), batch, drop_last)
    shards = {len(BatchSamplerShard(sampler, processes, index)) for index in range(processes)}
    values = {"per_device_train_batch_size": batch, "dataloader_drop_last": drop_last, "num_train_epochs": 1}
    assert {plan_of(values, examples=40, processes=processes).steps} == shards


def test_a_run_that_dropped_its_last_batch_is_finished(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path]
) -> None:
    recipe = write_recipe(max_steps=None, num_train_epochs=1, per_device_train_batch_size=3, dataloader_drop_last=True)
    assert rlhf("sft", str(recipe)).code == 0
    again = rlhf("sft", str(recipe), "--resume")
    assert again.code == 0
    assert "finished already" in again.err
    other = rlhf("sft", str(recipe), "--resume", "--learning_rate", "0.5")
    assert (other.code, "`learning_rate` was 0.001 and is now 0.5" in other.err) == (2, True), other.err


@pytest.mark.parametrize("file", ["rewards.py", "helper.py"])
def test_a_run_goes_on_only_against_the_reward_it_began_with(
    file: str, rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    recipe = str(write_ppo_recipe(save_steps=1, lr_scheduler_type="constant"))
    (tmp_path / "helper.py").write_text("SCALE = 1\n")
    rewards = tmp_path / "rewards.py"
    rewards.write_text("from helper import SCALE\n" + rewards.read_text())
    assert rlhf("ppo", recipe).code == 0
    assert rlhf("ppo", recipe, "--resume").code == 0
    (tmp_path / file).write_text((tmp_path / file).read_text() + "# another\n")
    for more in ((), ("--total_episodes", "32")):
        other = rlhf("ppo", recipe, "--resume", *more)
        assert other.code == 2, other.err
        assert f"{file}` has changed since the run began" in other.err


def test_a_reward_model_that_was_trained_anew_is_another_reward(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], write_pairs_recipe: Callable[..., Path]
) -> None:
    pairs = str(write_pairs_recipe(output_dir="rm", max_steps=2, save_strategy="no"))
    assert rlhf("train-reward", pairs).code == 0
    recipe = str(write_ppo_recipe(reward_funcs=None, reward_model_path="rm", lr_scheduler_type="constant"))
    assert rlhf("ppo", recipe).code == 0
    assert rlhf("ppo", recipe, "--resume").code == 0
    assert rlhf("train-reward", pairs, "--overwrite", "--seed", "9").code == 0
    other = rlhf("ppo", recipe, "--resume", "--total_episodes", "32")
    assert (other.code, "`rm` has changed since the run began" in other.err) == (2, True), other.err
    assert rlhf("ppo", recipe, "--output_dir", "again").code == 0
    assert "rm" in json.loads(rlhf("runs", "diff", "run", "again", "--json").out)["data"]


def test_what_was_logged_behind_a_checkpoint_is_logged_once(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Of the last step its checkpoint knows the loss, and the evaluation comes after it."""
    recipe = str(write_recipe(max_steps=4, save_steps=2, test_split_size=0.2, logging_steps=1))
    assert rlhf("sft", recipe).code == 0
    file, record = tmp_path / "run/rlhf/metrics.jsonl", tmp_path / "run/rlhf/run.json"
    steps = [json.loads(line)["step"] for line in file.read_text().splitlines() if "train_runtime" not in line]
    assert steps == [1, 2, 3, 4, 4]
    # As a process leaves it that is killed when it has evaluated and before it has written down that it is done.
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running", "members_trained": 0}))
    assert rlhf("sft", recipe, "--resume").code == 0
    lines = file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "train_runtime" not in line] == steps
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running", "members_trained": 0}))
    assert rlhf("sft", recipe, "--resume").code == 0
    lines = file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "train_runtime" not in line] == steps


def test_gates_are_held_again_when_a_finished_run_is_asked_to_go_on(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path]
) -> None:
    def gated(most: float) -> str:
        gates = [{"metric": "log_loss", "max": most}]
        return str(write_pairs_recipe(test_split_size=0.2, max_steps=1, save_strategy="no", gates=gates))

    assert rlhf("train-reward", gated(0.0)).code == 3
    for most, code in ((0.0, 3), (10, 0), (0.0, 3)):
        again = rlhf("train-reward", gated(most), "--resume")
        assert again.code == code, again.err
        assert "finished already" in again.err
        assert ("gate log_loss (value) asks max 0: it is " in again.err) is (code == 3)
