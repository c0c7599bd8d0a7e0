"""Every key that a recipe may have reaches something: who reads it, key by key."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from trl import ModelConfig, SFTConfig

import rlhf_cli
from rlhf_cli import models
from rlhf_cli.methods import METHODS
from rlhf_cli.plan import Counts, Machine, ModelSize, Plan, make_plan
from rlhf_cli.recipe import Recipe
from rlhf_cli.schema import load_schema

SCHEMA = load_schema("sft")
PACKAGE = Path(rlhf_cli.__file__).parent
READ_BY_US = {
    # the data
    "dataset_name": "sources.py", "dataset_config": "sources.py", "datasets": "sources.py", "columns": "sources.py",
    "layout": "sources.py", "dataset_train_split": "data.py", "dataset_test_split": "data.py",
    "test_split_size": "sources.py", "split_by": "data.py", "skip_bad_rows": "data.py",
    "dataset_text_field": "sources.py", "assistant_only_loss": "methods/sft.py",
    "completion_only_loss": "methods/sft.py",
    # the model
    "model_name_or_path": "models.py", "model_init_kwargs": "models.py", "chat_template": "models.py",
    "chat_template_path": "models.py",
    # the run
    "method": "recipe.py", "extends": "recipe_file.py", "env": "recipe.py", "hub_token": "recipe.py",
    "guards": "train.py", "save_total_limit": "train.py", "gradient_checkpointing": "machine.py",
}  # fmt: skip
"""Keys that neither the trainer's config nor TRL's ModelConfig takes, and the file that reads each."""


def plan_of(values: dict[str, Any], *, examples: int = 9, processes: int = 1) -> Plan:
    recipe = Recipe(Path("r.yaml"), "sft", {"output_dir": "out", **values}, {}, SCHEMA)
    machine = Machine("cpu", "a CPU", processes=processes, threads=1, memory_gib=1, free_gib=1, bf16=False)
    counts = Counts(
        read=examples, bad=0, masked=0, used=examples, truncated=0, examples=examples, tokens=90, loss_tokens=9,
        longest=10,
    )  # fmt: skip
    size = ModelSize(trainable=1, frozen=0, frozen_bytes=0, hidden=1, layers=1, vocabulary=1, kept_bytes=1,
                     cast_bytes=0, head_trains=False)  # fmt: skip
    return make_plan(recipe, {}, machine, train=counts, test=None, sizes={"policy": size})


@pytest.mark.parametrize("key", SCHEMA["properties"])
def test_every_key_is_read(key: str) -> None:
    if key in READ_BY_US:
        assert f'"{key}"' in (PACKAGE / READ_BY_US[key]).read_text()
    elif key in SFTConfig.__dataclass_fields__:
        marker = SCHEMA["properties"][key].get("default") or "marked"
        assert plan_of({key: marker}).arguments(SFTConfig)[key] == marker
    else:
        assert key in ModelConfig.__dataclass_fields__
        recipe = Recipe(Path("r.yaml"), "sft", {key: "marked"}, {}, SCHEMA)
        assert getattr(models._model_config(recipe, {}), key) == "marked"
        read = inspect.getsource(models)
        taken = f'recipe["{key}"]' in read or f"model_config.{key}" in read
        # What TRL makes the adapter and the quantisation of.
        assert taken or key.startswith(("lora_", "bnb_", "load_in_", "use_"))


def test_the_table_names_no_key_too_much() -> None:
    assert READ_BY_US.keys() <= SCHEMA["properties"].keys()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"lora_r": 3, "lora_alpha": 7, "lora_dropout": 0.3}, {"r": 3, "lora_alpha": 7, "lora_dropout": 0.3}),
        ({"use_rslora": True, "use_dora": True}, {"use_rslora": True, "use_dora": True}),
        ({"lora_modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}),
        ({"lora_target_modules": ["a", "b"]}, {"target_modules": {"a", "b"}}),
        ({"lora_target_parameters": ["w"]}, {"target_parameters": ["w"]}),
    ],
)
def test_adapter_keys_reach_peft(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    recipe = Recipe(Path("r.yaml"), "sft", {"use_peft": True, **keys}, {}, SCHEMA)
    config = models.adapter_config(recipe, models.Source("m", "m", None))
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"load_in_8bit": True}, {"load_in_8bit": True}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, {"bnb_4bit_quant_type": "fp4"}),
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, {"bnb_4bit_use_double_quant": True}),
    ],
)
def test_quantisation_keys_reach_bitsandbytes(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    recipe = Recipe(Path("r.yaml"), "sft", keys, {}, SCHEMA)
    config = models.get_quantization_config(models._model_config(recipe, {}))
    assert {key: getattr(config, key) for key in expected} == expected


def test_the_schema_is_of_these_classes() -> None:
    (method,) = (method for method in METHODS if method.command == "sft")
    assert {SFTConfig, ModelConfig} <= set(method.config_classes())
