"""A model's size, and what a step keeps of it, found without loading a weight or computing anything."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from peft import PeftConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from rlhf_cli.adapters import adapter_config
from rlhf_cli.errors import RecipeError
from rlhf_cli.memory import ModelSize, weight_bytes
from rlhf_cli.model_source import Role, Source, what_it_holds
from rlhf_cli.models import as_mapping, describe_model, explained_model, model_keys
from rlhf_cli.plan import POLICY, REWARD_MODEL
from rlhf_cli.recipe import Recipe


@dataclass(frozen=True)
class Kept:
    """Bytes that wait for the backward pass."""

    total: int
    casts: int
    """Copies of weights in the dtype of the computation."""


@dataclass(frozen=True)
class Batch:
    """The batch that is tried."""

    rows: int
    tokens: int
    """Of a row."""
    packed: bool
    """Whether it is laid out as one long sequence of documents."""
    compute: torch.dtype
    device: str


def measure_model(recipe: Recipe, role: Role, dtype: str, batch: Batch) -> ModelSize:
    """Count a model's parameters, and what a forward pass over a batch keeps, without loading a weight.

    Args:
        recipe: For adapter and quantisation.
        role: The model, and whether it trains.
        dtype: Of its frozen weights.
        batch: The longest batch of the run.

    Raises:
        RecipeError: when the configuration cannot be used, or modules are named that the model does not have.
    """
    source, kind = role.source, role.kind
    model = _describe(recipe, source, kind)
    base = sum(parameter.numel() for parameter in model.parameters())
    linear = _linear_weights(model)
    head = model.get_output_embeddings() if kind != REWARD_MODEL else None
    trunk, text = model.base_model, model.config.get_text_config()
    trainable, frozen, frozen_bytes = base, 0, 0.0
    if not role.trains and not role.copies:
        return _frozen(base, int(_stored_bytes(recipe, base, linear, dtype)), text)
    if not role.whole and (recipe["use_peft"] or source.adapter):
        _refuse_unfound(recipe, source, model)
        with explained_model(recipe, f"an adapter on `{source.name}`", source.base), init_empty_weights():
            config = adapter_config(model_keys(recipe), source, kind, model)
            model = get_peft_model(model, config)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        frozen = base
        frozen_bytes = _stored_bytes(recipe, base, linear, dtype)
        quantised = recipe["load_in_4bit"] or recipe["load_in_8bit"]
        _store_frozen(model, torch.bfloat16 if quantised else getattr(torch, dtype, torch.float32))
    if role.copies:
        return _frozen(trainable, 4 * trainable, text)
    head_trains = head is not None and any(parameter.requires_grad for parameter in head.parameters())
    kept = measure_kept(model, trunk, batch)
    return ModelSize(
        trainable=trainable,
        frozen=frozen,
        frozen_bytes=int(frozen_bytes),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size if head is not None else 0,
        kept_bytes=kept.total,
        cast_bytes=kept.casts,
        head_trains=head_trains,
        cache_bytes=_cache_bytes(text, batch),
    )


def _cache_bytes(text: PretrainedConfig, batch: Batch) -> int:
    """Keys and values of one token in every layer."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * batch.compute.itemsize)


def _stored_bytes(recipe: Recipe, weights: int, linear: int, dtype: str) -> float:
    """Bytes of frozen weights, of which those of linear layers may be quantised."""
    bits = 4.5 if recipe["load_in_4bit"] else 8.5 if recipe["load_in_8bit"] else 8 * weight_bytes(dtype)
    return linear * bits / 8 + (weights - linear) * weight_bytes(dtype)


def _frozen(weights: int, stored_bytes: int, text: PretrainedConfig) -> ModelSize:
    """A model that does not train: nothing is kept for it, and its logits have gone before the policy's."""
    return ModelSize(
        trainable=0,
        frozen=weights,
        frozen_bytes=stored_bytes,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=0,
        kept_bytes=0,
        cast_bytes=0,
        head_trains=False,
    )


def _describe(recipe: Recipe, source: Source, kind: str) -> PreTrainedModel:
    """The model on the meta device."""
    where = recipe.where("model_name_or_path")
    how = {"revision": recipe["model_revision"], "trust_remote_code": recipe["trust_remote_code"]}
    with explained_model(recipe, f"the configuration of `{source.name}`", source.base):
        if source.holds is None:
            config = AutoConfig.from_pretrained(source.base, **how)
            if what_it_holds(config.to_dict(), source.name, where=where) == REWARD_MODEL and kind == POLICY:
                raise RecipeError(
                    f"`{source.name}` is a reward model, and {recipe.method} trains a policy", where=where
                )
        how["attn_implementation"] = recipe["attn_implementation"]
        if kind == REWARD_MODEL:
            how["num_labels"] = 1
        return describe_model(source.base, kind, **how, **as_mapping(recipe["model_init_kwargs"]))


def _linear_weights(model: torch.nn.Module) -> int:
    """Weights that quantisation makes smaller."""
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    )


def _store_frozen(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Frozen weights as they are stored; quantised ones as they are computed with, since they are not kept twice."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _refuse_unfound(recipe: Recipe, source: Source, model: PreTrainedModel) -> None:
    """Refuse names of modules that the model does not have. PEFT does without those when it finds any other."""
    if source.adapter:
        _refuse_other_targets(recipe, source, model)
        return
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for key, names in (
        ("lora_target_modules", modules),
        ("lora_modules_to_save", modules),
        ("lora_target_parameters", parameters),
    ):
        wanted = recipe[key] if isinstance(recipe[key], list) else []
        unfound = [each for each in wanted if not any(f".{name}".endswith(f".{each}") for name in names)]
        if unfound and unfound != ["all-linear"]:
            there = sorted({name.rpartition(".")[2] for name in linear})
            raise RecipeError(
                f"`{key}` names `{unfound[0]}`, which the model does not have",
                where=recipe.where(key),
                hint=f"it has {', '.join(there)}; `lora_target_modules: all-linear` takes all but the head",
            )


def _refuse_other_targets(recipe: Recipe, source: Source, model: PreTrainedModel) -> None:
    """Refuse `all-linear` of an adapter that is continued where it is on fewer modules."""
    there = PeftConfig.from_pretrained(source.adapter).target_modules
    if recipe["lora_target_modules"] not in ("all-linear", ["all-linear"]) or isinstance(there, str):
        return
    trunk = [name for name, module in model.base_model.named_modules() if isinstance(module, torch.nn.Linear)]
    lacking = sorted(
        {name.rpartition(".")[2] for name in trunk if not any(f".{name}".endswith(f".{each}") for each in there)}
    )
    if lacking:
        raise RecipeError(
            f"`lora_target_modules` is all-linear, but the adapter in `{source.name}` is not on {', '.join(lacking)}",
            where=recipe.where("lora_target_modules"),
            hint="remove `lora_target_modules`: a continued adapter keeps its shape",
        )


def measure_kept(model: PreTrainedModel, trunk: torch.nn.Module, batch: Batch) -> Kept:
    """Run the trunk forward with every operation's saved tensors counted, and none computed.

    The kernels that would be chosen are those that are counted, attention's among them, for whatever architecture.

    Args:
        model: On the meta device, adapters included; its parameters are replaced.
        trunk: The part of it below the head.
        batch: What to feed it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = _pretend(model, batch.device)
        model.train()
        kept: dict[int, tuple[torch.UntypedStorage, int, torch.Size]] = {}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if id(storage) not in weights:
                kept[id(storage)] = (storage, storage.nbytes(), tensor.shape)
            return tensor

        autocast = batch.compute != torch.float32
        with (
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
            torch.autocast(batch.device, dtype=batch.compute) if autocast else contextlib.nullcontext(),
        ):
            trunk(**_inputs(batch), use_cache=False)
        shapes = {shape for parameter in model.parameters() for shape in (parameter.shape, parameter.shape[::-1])}
        return Kept(
            total=sum(size for _, size, _ in kept.values()),
            casts=sum(size for _, size, shape in kept.values() if shape in shapes),
        )


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    if batch.packed:
        shape = (1, batch.rows * batch.tokens)
        return {
            "input_ids": torch.zeros(shape, dtype=torch.long, device=batch.device),
            "position_ids": torch.zeros(shape, dtype=torch.long, device=batch.device),
            # Real position ids make such a mask; these have no values to make it from.
            "attention_mask": torch.zeros((1, 1, shape[1], shape[1]), dtype=torch.bool, device=batch.device),
        }
    shape = (batch.rows, batch.tokens)
    ids = torch.zeros(shape, dtype=torch.long, device=batch.device)
    return {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.long, device=batch.device)}


def _pretend(model: torch.nn.Module, device: str) -> set[int]:
    """Give every parameter and buffer a body that is none, shared where they share; the ids of their storages."""
    bodies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in bodies:
                    body = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    bodies[id(tensor)] = torch.nn.Parameter(body, tensor.requires_grad) if is_weight else body
                tensors[name] = bodies[id(tensor)]
    return {id(body.untyped_storage()) for body in bodies.values()}
