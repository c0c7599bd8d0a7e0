"""Recipes that TRL, transformers, PEFT or torch would refuse: named before any weights load, by `--dry-run` too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EVALUATED = {"test_split_size": 0.2, "eval_strategy": "steps", "eval_steps": 2}
CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "a module that is not there": (
        {"use_peft": True, "lora_target_modules": ["query_key_value"]}, 2,
        "`lora_target_modules` names `query_key_value`, which the model does not have\nhint: it has down_proj",
    ),
    "one of several modules": (
        {"use_peft": True, "lora_target_modules": ["q_proj", "v_porj"]}, 2, "names `v_porj`",
    ),
    "a module to save": ({"use_peft": True, "lora_modules_to_save": ["head"]}, 2, "`lora_modules_to_save` names"),
    "a pattern that fits nothing": (
        {"use_peft": True, "lora_target_modules": "query.*"}, 2, "cannot load an adapter on",
    ),
    "an argument that is a key": (
        {"model_init_kwargs": {"dtype": "bfloat16"}}, 2, '`model_init_kwargs` takes no key "dtype"',
    ),
    "an argument nobody knows": ({"optim_args": "wight=1"}, 2, "reads no `optim_args: wight=1`"),
    "arguments without values": ({"optim_args": "foo"}, 2, '`optim_args` cannot be "foo"'),
    "a metric that is not measured": (
        {**EVALUATED, "metric_for_best_model": "accuracy"}, 2, '`metric_for_best_model` cannot be "accuracy"',
    ),
    "an optimizer without its package": ({"optim": "galore_adamw"}, 5, "galore"),
    "kernels without their package": ({"use_liger_kernel": True}, 5, "pip install liger-kernel"),
    "attention without its package": ({"attn_implementation": "flash_attention_2"}, 5, "FlashAttention2"),
    "a tracker without its package": ({"report_to": "swanlab"}, 5, "`report_to: swanlab`"),
    "a tracker nobody knows": ({"report_to": ["wandbb"]}, 2, "did you mean `wandb`?"),
    "a schedule's argument": (
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min": 0.1}}, 2, "'min'",
    ),
    "an accelerator's argument": ({"accelerator_config": {"foo": 1}}, 2, "'foo' was unexpected"),
    "batches that are split": ({"accelerator_config": {"split_batches": True}}, 2, "'split_batches' was unexpected"),
    "workers that persist without being": ({"dataloader_persistent_workers": True}, 2, "needs workers"),
    "nothing left to train on": ({"test_split_size": 0.999}, 4, "leaves nothing to train on"),
    "more held out than there is": ({"test_split_size": 41}, 4, "leaves nothing to train on"),
    "the best of other steps": (
        {**EVALUATED, "load_best_model_at_end": True, "save_steps": 3}, 2, "multiple of the eval",
    ),
    "the best of epochs": (
        {**EVALUATED, "load_best_model_at_end": True, "save_strategy": "epoch"}, 2, "`save_strategy` is epoch",
    ),
    "a GPU's numbers on a CPU": ({"tf32": True, "use_cpu": True}, 2, "tf32"),
    "no batch is whole": ({"dataloader_drop_last": True, "per_device_train_batch_size": 41}, 2, "drops all there is"),
    "a batch size that is searched for": ({"auto_find_batch_size": True}, 2, "neither the plan nor `--resume`"),
    "a configuration of a local file": ({"dataset_config": "default"}, 2, "`default` names a configuration"),
    "a folder of a local file": (
        {"dataset_name": None, "datasets": [{"path": "rows.jsonl", "data_dir": "x"}]}, 2, "`data_dir: x` is for",
    ),
    "a revision of a local folder": ({"model_revision": "v2"}, 2, "`model_revision` is for models of the Hub"),
    "a test split beside a share": (
        {"test_split_size": 0.1, "dataset_test_split": "test"}, 2, "`dataset_test_split` is not read",
    ),
    "an adapter for another task": (
        {"use_peft": True, "lora_task_type": "SEQ_CLS"}, 2, '`lora_task_type` cannot be "SEQ_CLS"',
    ),
    "a number that is none": ({"weight_decay": float("inf")}, 2, "`weight_decay` must be finite, got Infinity"),
    "no batch at all": ({"torch_empty_cache_steps": 0}, 2, "must be at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_run_is_refused_before_weights_load(
    case: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path, tiny_base: Path
) -> None:
    keys, code, text = CASES[case]
    # The folder holds a file that looks like weights and is none: loading it would be another error.
    for file in tiny_base.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / file.name).write_bytes(b"" if file.suffix == ".safetensors" else file.read_bytes())
    recipe = write_recipe(**{"model_name_or_path": "model", **keys})
    recipe.write_text(recipe.read_text().replace("Infinity", ".inf"))
    outcome = rlhf("sft", str(recipe), "--dry-run")
    assert "Traceback" not in outcome.err
    assert outcome.code == code, outcome.err
    assert text in outcome.err
    assert not (tmp_path / "run").exists()


def test_what_needs_no_torch_is_found_by_check(rlhf: Callable[..., Any], write_recipe: Callable[..., Path]) -> None:
    by_check = [
        "an argument that is a key", "arguments without values", "a metric that is not measured", "the best of epochs",
        "a tracker nobody knows", "an accelerator's argument", "batches that are split", "an adapter for another task",
        "workers that persist without being", "a batch size that is searched for", "a test split beside a share",
    ]  # fmt: skip
    for case in by_check:
        keys, code, text = CASES[case]
        outcome = rlhf("check", str(write_recipe(**keys)), "--method", "sft")
        assert outcome.code == code
        assert text in outcome.err


def test_rows_are_kept_together_by_a_column_of_lists(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    chats = [
        [{"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": str(n + 1)}] for n in range(5)
    ] * 2
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    recipe = write_recipe(dataset_name="chats.jsonl", split_by="messages", test_split_size=0.2)
    outcome = rlhf("sft", str(recipe), "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)
    assert (plan["train"]["used"], plan["test"]["used"]) == (8, 2)
