"""The memory plan: worked by hand, ordered as it must be, and against what two real steps take."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_cli.measure import Batch, measure_kept
from rlhf_cli.memory import GIB, ModelSize, estimate_disk, estimate_memory, smallest_change

SIZE = ModelSize(
    trainable=GIB // 8, frozen=GIB, frozen_bytes=GIB // 2, hidden=1024, layers=4, vocabulary=32768,
    kept_bytes=GIB, cast_bytes=GIB // 4, head_trains=False,
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "bf16": True, "fp16": False, "optim": "adamw_torch", "activation_checkpointing": False,
    "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8,
}  # fmt: skip


def estimate(size: ModelSize = SIZE, tokens: int = 4096, device: str = "cuda", **changed: Any) -> Any:
    return estimate_memory({"policy": size}, {**SETTINGS, **changed}.__getitem__, tokens, device=device)


def test_parts_worked_by_hand() -> None:
    memory = estimate()
    assert memory.parts_gib == pytest.approx({
        "policy weights": 0.5 + 0.5,  # an eighth of 2^30 in fp32, and the frozen half GiB
        "policy gradients": 0.5,
        "policy optimizer": 1.0,  # Adam's two moments
        "policy activations": 1.0,
        "policy logits": 4096 * 32768 * 2 / GIB,  # one tile in bf16
        "allocator": 0,
    })  # fmt: skip
    assert memory.peak_gib == pytest.approx(1 + 1 + 1 + 0.25)  # gradients take the place of activations and logits
    assert estimate(gradient_accumulation_steps=2).peak_gib == pytest.approx(3.25 + 0.5)


def test_settings_move_the_parts_they_should() -> None:
    parts = {name: estimate(**change).parts_gib for name, change in {
        "plain": {}, "sgd": {"optim": "sgd"}, "8bit": {"optim": "adamw_8bit"},
        "checkpointed": {"activation_checkpointing": True},
    }.items()}  # fmt: skip
    assert "policy optimizer" not in parts["sgd"]
    assert parts["8bit"]["policy optimizer"] == pytest.approx(0.25)
    # the inputs of four layers, one layer done again, and the copies of weights
    by_hand = 4 * 4 * 1024 * 4096 / GIB + 0.75 / 4 + 0.25
    assert parts["checkpointed"]["policy activations"] == pytest.approx(by_hand)
    assert estimate(replace(SIZE, head_trains=True)).parts_gib["policy logits"] > parts["plain"]["policy logits"]
    assert estimate(device="cpu").peak_gib > estimate().peak_gib


@pytest.mark.parametrize("room", [3.2, 3.0, 2.75])
def test_the_smallest_change_fits_by_the_same_formula(room: float) -> None:
    change = smallest_change({"policy": SIZE}, SETTINGS.__getitem__, 4096, device="cuda", room_gib=room)
    assert change
    changed = {key.strip("`"): json.loads(value.strip("`")) for key, value in
               (part.split(": ") for part in change.split(", "))}  # fmt: skip
    batch = changed.get("per_device_train_batch_size", 8)
    assert batch * changed.get("gradient_accumulation_steps", 1) == 8
    kept = SIZE.cast_bytes + (SIZE.kept_bytes - SIZE.cast_bytes) * batch // 8
    assert estimate(replace(SIZE, kept_bytes=kept), 4096 * batch // 8, **changed).peak_gib <= room


def test_the_cheapest_change_comes_first_and_none_is_none() -> None:
    def change(room: float) -> str | None:
        return smallest_change({"policy": SIZE}, SETTINGS.__getitem__, 4096, device="cuda", room_gib=room)

    assert change(3.2) == "`activation_checkpointing: true`"
    assert change(1.9) is None


@pytest.mark.parametrize(
    ("changed", "checkpoints"),
    [
        ({}, 4),  # 100 steps, one in 25
        ({"save_total_limit": 2}, 3),  # the third goes when the fourth is complete
        ({"save_total_limit": 1, "load_best_model_at_end": True}, 3),
        ({"save_total_limit": 9}, 4),
        ({"save_steps": 0.5}, 2),
        ({"save_strategy": "epoch"}, 2),
        ({"save_strategy": "no"}, 0),
    ],
)
def test_disk_worked_by_hand(changed: dict[str, Any], checkpoints: int) -> None:
    settings = {**SETTINGS, "save_strategy": "steps", "save_steps": 25, "save_total_limit": None, "eval_steps": None,
                "save_only_model": False, "load_best_model_at_end": False, **changed}  # fmt: skip
    disk = estimate_disk({"policy": SIZE}, settings.__getitem__, steps=100, steps_per_epoch=50)
    assert disk == {"checkpoints": pytest.approx(checkpoints * 1.5), "model": pytest.approx(0.5)}
    alone = estimate_disk(
        {"policy": SIZE}, {**settings, "save_only_model": True}.__getitem__, steps=100, steps_per_epoch=50
    )
    assert alone["checkpoints"] == pytest.approx(checkpoints * 0.5)


def tiny(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_a_real_forward_keeps(packed: bool, compute: torch.dtype) -> None:
    """Every saved tensor of a real forward pass, against those of one that computes nothing."""
    batch = Batch(rows=2, tokens=48, packed=packed, compute=compute, device="cpu")
    real = tiny(3).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in real.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs: dict[str, Any] = {"input_ids": torch.zeros(2, 48, dtype=torch.long)}
    inputs["attention_mask"] = torch.ones(2, 48, dtype=torch.long)
    inputs["attention_mask"][1, -1] = 0
    if packed:
        inputs = {"input_ids": torch.zeros(1, 96, dtype=torch.long), "position_ids": torch.arange(48).repeat(2)[None]}
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32),
    ):
        real.model(**inputs, use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    pretending = tiny(3)
    pretended = measure_kept(pretending, pretending.model, batch)
    assert pretended.total == pytest.approx(measured, rel=0.05)
    assert (pretended.casts > 0) == (compute == torch.bfloat16)


def test_more_tokens_and_more_layers_keep_more() -> None:
    def kept(layers: int, rows: int) -> int:
        model = tiny(layers)
        return measure_kept(model, model.model, Batch(rows, 32, False, torch.float32, "cpu")).total

    assert kept(2, 4) == pytest.approx(2 * kept(2, 2), rel=0.02)
    assert kept(4, 2) > 1.5 * kept(2, 2)


# --- from the command line ----------------------------------------------------------------------------------------


def test_fit_says_yes_by_part(rlhf: Callable[..., Any], write_recipe: Callable[..., Path]) -> None:
    done = rlhf("check", str(write_recipe(use_peft=True)), "--method", "sft", "--fit")
    assert done.code == 0, done.err
    for part in ("policy weights", "policy gradients", "policy optimizer", "policy activations", "policy logits"):
        assert part in done.out
    assert "GiB free" in done.out


def test_what_does_not_fit_is_refused_with_what_would(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(per_device_train_batch_size=2**24)
    done = rlhf("check", str(recipe), "--method", "sft", "--fit", "--format", "json")
    assert done.code == 5
    [outcome] = json.loads(done.out)["recipes"]
    assert not outcome["memory"]["fits"]
    assert "per_device_train_batch_size" in outcome["memory"]["smaller"]
    dry = rlhf("sft", str(recipe), "--dry-run")
    assert dry.code == 0
    assert "warning: about" in dry.err
    assert "hint: `activation_checkpointing: true`" in dry.err or "`per_device_train_batch_size: " in dry.err


def test_a_probe_measures_and_leaves_nothing(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe()
    before = sorted(tmp_path.rglob("*"))
    done = rlhf("check", str(recipe), "--method", "sft", "--probe", "--format", "json")
    assert done.code == 0, done.err
    [outcome] = json.loads(done.out)["recipes"]
    assert outcome["memory"]["probe"]["peak_gib"] > 0
    assert outcome["memory"]["probe"]["step_s"] > 0
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.name.startswith(".std")] == before
