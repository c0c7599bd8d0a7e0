"""Every key that a recipe may have reaches something: who reads it, key by key."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from trl import DPOConfig, ModelConfig, RewardConfig, SFTConfig

import rlhf_cli
from rlhf_cli import models
from rlhf_cli.adapters import adapter_config
from rlhf_cli.methods import METHODS
from rlhf_cli.plan import POLICY, Counts, Machine, ModelSize, Plan, make_plan
from rlhf_cli.ppo import PPOConfig
from rlhf_cli.recipe import Recipe
from rlhf_cli.schema import load_schema, method_names

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
    "model_name_or_path": "model_source.py", "model_init_kwargs": "models.py", "chat_template": "tokenizer.py",
    "chat_template_path": "tokenizer.py", "pad_token": "tokenizer.py",
    # preferences
    "drop_ties": "sources.py", "ensemble_size": "plan.py", "gates": "grading.py",
    # the run
    "method": "recipe.py", "extends": "recipe_file.py", "env": "recipe.py", "hub_token": "recipe.py",
    "guards": "train.py", "save_total_limit": "train.py", "gradient_checkpointing": "machine.py",
    "report": "train.py",
}  # fmt: skip
"""Keys that neither the trainer's config nor TRL's ModelConfig takes, and the file that reads each."""
READ_BY: dict[str, dict[str, str]] = {
    "eval": {
        "dataset_train_split": "data.py", "dataset_test_split": "data.py", "gates": "evaluate.py",
        "seed": "grading.py", "reward_model_path": "grading.py", "output_dir": "evaluate.py",
        "load_in_4bit": "models.py", "load_in_8bit": "models.py", "trust_remote_code": "grading.py",
        "report": "evaluate.py", "models": "eval_recipe.py", "reward_funcs": "judging.py",
        "verdicts_file": "compare.py", "best_of_n": "compare.py", "response_length": "compare.py",
        "temperature": "compare.py", "per_device_eval_batch_size": "compare.py", "frontier": "entrants.py",
        "baseline": "entrants.py", "reference": "entrants.py", "training_rewards": "entrants.py",
        "max_prompts": "entrants.py", "stop_token_id": "compare.py", "perplexity_file": "entrants.py",
    },
}  # fmt: skip
"""The same, where a command differs."""
CONFIGS: dict[str, type | None] = {
    "sft": SFTConfig, "train-reward": RewardConfig, "dpo": DPOConfig, "ppo": PPOConfig, "eval": None,
}  # fmt: skip


def plan_of(values: dict[str, Any], command: str = "sft", *, examples: int = 9, processes: int = 1) -> Plan:
    recipe = Recipe(Path("r.yaml"), command, {"output_dir": "out", **values}, {}, load_schema(command))
    machine = Machine("cpu", "a CPU", processes=processes, threads=1, memory_gib=1, free_gib=1, bf16=False)
    counts = Counts(
        read=examples, bad=0, masked=0, used=examples, truncated=0, examples=examples, tokens=90, loss_tokens=9,
        longest=10,
    )  # fmt: skip
    size = ModelSize(trainable=1, frozen=0, frozen_bytes=0, hidden=1, layers=1, vocabulary=1, kept_bytes=1,
                     cast_bytes=0, head_trains=False)  # fmt: skip
    return make_plan(recipe, {}, machine, train=counts, test=None, sizes={"policy": size})


@pytest.mark.parametrize(
    ("command", "key"), [(name, key) for name in CONFIGS for key in load_schema(name)["properties"]]
)
def test_every_key_is_read(command: str, key: str) -> None:
    config = CONFIGS[command]
    readers = {**READ_BY_US, **READ_BY.get(command, {})}
    if key in readers:
        assert f'"{key}"' in (PACKAGE / readers[key]).read_text()
    elif config is not None and key in config.__dataclass_fields__:
        marker = load_schema(command)["properties"][key].get("default") or "marked"
        assert plan_of({key: marker}, command).arguments(config)[key] == marker
    else:
        assert config is not None
        assert key in ModelConfig.__dataclass_fields__
        recipe = Recipe(Path("r.yaml"), command, {key: "marked"}, {}, load_schema(command))
        assert getattr(models.model_keys(recipe), key) == "marked"
        read = inspect.getsource(models)
        taken = f'recipe["{key}"]' in read or f"keys.{key}" in read
        # What TRL makes the adapter and the quantisation of.
        assert taken or key.startswith(("lora_", "bnb_", "load_in_", "use_"))


def test_the_tables_name_no_key_too_much() -> None:
    assert set(CONFIGS) == set(method_names())
    assert READ_BY_US.keys() <= {key for command in CONFIGS for key in load_schema(command)["properties"]}
    for command, readers in READ_BY.items():
        assert readers.keys() <= load_schema(command)["properties"].keys()


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
    config = adapter_config(models.model_keys(recipe), models.Source("m", "m", None), POLICY, torch.nn.Linear(1, 1))
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
    config = models.get_quantization_config(models.model_keys(recipe))
    assert {key: getattr(config, key) for key in expected} == expected


def test_the_schema_is_of_these_classes() -> None:
    (method,) = (method for method in METHODS if method.command == "sft")
    assert {SFTConfig, ModelConfig} <= set(method.config_classes())


def test_every_key_that_is_ppos_own_is_read() -> None:
    source = "".join(path.read_text() for path in (PACKAGE / "ppo").glob("*.py") if path.name != "verifiable.py")
    own = [field.name for field in dataclasses.fields(PPOConfig) if field.name not in inherited()]
    unread = [name for name in own if f"config.{name}" not in source and f"args.{name}" not in source]
    # A choice of one is there to say why; what the model needs, and how rows become tokens, the recipe says.
    assert set(unread) - {"kl_estimator", "dataset_num_proc", *SELF_READ} == set()


def inherited() -> set[str]:
    return {field.name for field in dataclasses.fields(TrainingArguments)}


SELF_READ = {"num_ppo_epochs", "total_episodes"}
"""What PPOConfig itself reads for others."""
