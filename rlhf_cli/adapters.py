"""Adapters: made new, continued, or carried from a policy over to a reward model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from peft import (
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from transformers import PreTrainedModel
from trl import ModelConfig, get_peft_config

from rlhf_cli.errors import RecipeError
from rlhf_cli.model_source import Source
from rlhf_cli.plan import POLICY, REWARD_MODEL


def head_names(model: PreTrainedModel) -> list[str]:
    """The modules of a model that are not its trunk, such as `score`."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def adapter_config(keys: ModelConfig, source: Source, trains: str, model: PreTrainedModel) -> PeftConfig:
    """What the adapter of a run looks like: as the one that is continued, or as the recipe says.

    Args:
        keys: TRL's view of the model keys.
        source: What the run starts from.
        trains: `POLICY` or `REWARD_MODEL`; the score of a reward model is always trained and saved with its adapter.
        model: The model it goes on.
    """
    config = PeftConfig.from_pretrained(source.adapter) if source.adapter else get_peft_config(keys)
    config.inference_mode = False
    if trains == REWARD_MODEL:
        config.task_type = TaskType.SEQ_CLS
        config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or []), *head_names(model)]))
    return config


def hold_in_fp32(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Hold modules that are trained whole in fp32; PEFT copies them in the dtype they have, and loads into that."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in set(names):
            module.float()


def put_adapter(model: PreTrainedModel, source: Source, config: PeftConfig) -> PeftModel:
    """Put a new adapter on, or the one that is continued.

    Raises:
        RecipeError: when a policy's adapter does not go on a reward model whole.
    """
    hold_in_fp32(model, config.modules_to_save or [])
    if source.adapter is None:
        return get_peft_model(model, config)
    if source.holds == POLICY and config.task_type == TaskType.SEQ_CLS:
        return _carry_over(model, source, config)
    return PeftModel.from_pretrained(model, source.adapter, is_trainable=True)


def _carry_over(model: PreTrainedModel, source: Source, config: PeftConfig) -> PeftModel:
    """A reward model's adapter that starts as the policy's: every tensor of that one must find its place."""
    adapted = get_peft_model(model, config)
    tensors: dict[str, torch.Tensor] = load_file(Path(str(source.adapter)) / SAFETENSORS_WEIGHTS_NAME)
    own = get_peft_model_state_dict(adapted)
    heads = tuple(f".{name}." for name in head_names(model))
    new = {name for name in own if any(head in name for head in heads)}
    unplaced = sorted(tensors.keys() ^ (own.keys() - new))
    if unplaced:
        raise RecipeError(
            f"the adapter in `{source.name}` does not go on a reward model whole: {len(unplaced)} tensors have no "
            f"counterpart, such as {unplaced[0]}",
            hint="what it changes outside of the trunk, such as `lm_head`, a reward model does not have",
        )
    set_peft_model_state_dict(adapted, {**own, **tensors})
    return adapted
