"""The run's numbers, worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.machine import decide
from rlhf_cli.memory import ModelSize
from rlhf_cli.plan import Counts, Machine, make_plan
from rlhf_cli.recipe import Recipe, read_recipe

CPU = Machine("cpu", "a CPU", processes=1, threads=2, memory_gib=16, free_gib=15, bf16=True)
GPU = Machine("cuda", "a GPU", processes=1, threads=2, memory_gib=24, free_gib=23, bf16=True)
TRAIN = Counts(
    read=103, bad=1, masked=2, used=100, truncated=5, examples=100, tokens=9000, loss_tokens=4000, longest=256
)
SIZE = ModelSize(
    trainable=1000, frozen=0, frozen_bytes=0, hidden=64, layers=4, vocabulary=512, kept_bytes=4096, cast_bytes=0,
    head_trains=True,
)  # fmt: skip


def recipe(tmp_path: Path, **keys: Any) -> Recipe:
    lines = [f"{key}: {value}\n" for key, value in {"model_name_or_path": "m", "dataset_name": "d", **keys}.items()]
    (tmp_path / "r.yaml").write_text("".join(lines))
    return read_recipe(tmp_path / "r.yaml", method="sft")


@pytest.mark.parametrize(
    ("keys", "processes", "batch", "per_epoch", "steps"),
    [
        ({}, 1, 8, 13, 39),  # 100 rows by 8, the last batch short; three epochs
        ({"gradient_accumulation_steps": 4}, 1, 32, 4, 12),  # 13 batches by 4, the last step short
        ({"per_device_train_batch_size": 5}, 2, 10, 10, 30),
        ({"num_train_epochs": 0.5}, 1, 8, 13, 7),
        ({"max_steps": 5}, 1, 8, 13, 5),
    ],
)
def test_steps_and_batch(
    keys: dict[str, Any], processes: int, batch: int, per_epoch: int, steps: int, tmp_path: Path
) -> None:
    read = recipe(tmp_path, output_dir="out", **keys)
    machine = replace(CPU, processes=processes)
    plan = make_plan(read, {}, machine, train=TRAIN, test=None, sizes={"policy": SIZE})
    assert (plan.batch, plan.steps_per_epoch, plan.steps) == (batch, per_epoch, steps)


def test_secrets_are_not_written_down(tmp_path: Path) -> None:
    read = recipe(tmp_path, output_dir="out", hub_token="hf_secret", env="{TOKEN: hf_secret}")
    plan = make_plan(read, {}, CPU, train=TRAIN, test=None, sizes={"policy": SIZE})
    assert plan.setting("hub_token") == "hf_secret"
    assert "hf_secret" not in str(plan.as_json())


@pytest.mark.parametrize(
    ("machine", "keys", "adapts", "expected"),
    [
        (CPU, {}, False, {"use_cpu": True, "bf16": True, "dtype": "float32", "activation_checkpointing": False}),
        (replace(CPU, bf16=False), {}, True, {"bf16": False, "dtype": "float32"}),
        (CPU, {"use_peft": "true", "load_in_4bit": "true"}, True, {"bf16": True, "dtype": "bfloat16"}),
        (GPU, {}, False, {"use_cpu": False, "bf16": True, "dtype": "float32", "activation_checkpointing": True}),
        (GPU, {"use_peft": "true"}, True, {"bf16": True, "dtype": "bfloat16"}),
        (GPU, {"fp16": "true"}, True, {"bf16": False, "dtype": "float32"}),
        (GPU, {"gradient_checkpointing": "false"}, False, {"activation_checkpointing": False}),
    ],
)
def test_the_machine_decides_what_the_recipe_leaves_open(
    machine: Machine, keys: dict[str, Any], adapts: bool, expected: dict[str, Any], tmp_path: Path
) -> None:
    decisions = decide(recipe(tmp_path, **keys), machine, {"assistant_only_loss": True}, adapts=adapts)
    assert {key: decisions[key].value for key in expected} == expected
    assert decisions["assistant_only_loss"].value is True
    assert decisions["output_dir"].value == "runs/r"
    assert all(decision.reason for decision in decisions.values())


def test_the_recipe_is_never_overruled(tmp_path: Path) -> None:
    written = {"use_cpu": "false", "bf16": "false", "dtype": "bfloat16", "activation_checkpointing": "true",
               "assistant_only_loss": "false", "output_dir": "x", "dataloader_pin_memory": "true",
               "logging_nan_inf_filter": "true"}  # fmt: skip
    assert decide(recipe(tmp_path, **written), CPU, {"assistant_only_loss": True}, adapts=True) == {}
