"""Load and quantise: weights by name, as a policy or as a reward model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash
from trl import ModelConfig, get_quantization_config

from rlhf_cli.adapters import adapter_config, head_names, put_adapter
from rlhf_cli.errors import EnvironmentFault, RecipeError, first_line
from rlhf_cli.model_source import ADAPTER_CONFIG, Source, look_into
from rlhf_cli.plan import POLICY, REWARD_MODEL, Plan
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import ensure_chat_template

QUANTISATION = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
"""Recipe keys that say how weights are quantised."""
_SAMPLED_BLOCKS, _BLOCK_BYTES = 16, 2**20
_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
    RuntimeError,
    json.JSONDecodeError,
)
"""What transformers raises, version by version, for folders that hold no usable model."""


@dataclass(frozen=True)
class Loaded:
    """The model that trains, and its tokenizer."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    source: Source


def fingerprint_model(recipe: Recipe, source: Source) -> str:
    """What tells one model from another: of its base, and of the adapter on it."""
    names = [name for name in (source.base, source.adapter) if name]
    return "+".join(fingerprint_weights(name, recipe["model_revision"]) for name in names)


def fingerprint_weights(name: str, revision: str = "main") -> str:
    """The Hub's commit, or a hash over samples of every weight file of a folder.

    A whole hash of a large model would take minutes; 16 blocks of each file, its size and its name are read instead.
    """
    folder = Path(name)
    if not folder.is_dir():
        file_here = cached_file(name, CONFIG_NAME, revision=revision)
        return str(extract_commit_hash(file_here, None))
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as weights:
            for block in range(_SAMPLED_BLOCKS):
                weights.seek(block * max(0, size - _BLOCK_BYTES) // (_SAMPLED_BLOCKS - 1))
                digest.update(weights.read(_BLOCK_BYTES))
    return digest.hexdigest()


def model_keys(recipe: Recipe, decided: Mapping[str, Any] | None = None) -> ModelConfig:
    """TRL's view of the model keys."""
    values = {**recipe.values, **(decided or {})}
    return ModelConfig(**{key: values[key] for key in ModelConfig.__dataclass_fields__ if key in values})


def load_model(recipe: Recipe, plan: Plan, source: Source, tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Load the weights, quantise them, and put the adapter on.

    Args:
        recipe: What to load, and how.
        plan: For `dtype`, the device, and whether a policy or a reward model trains.
        source: What `model_name_or_path` holds.
        tokenizer: Of the run.

    Raises:
        RecipeError: when the folder holds no model that can be loaded.
        EnvironmentFault: when the hub cannot be reached.
    """
    set_seed(plan.setting("seed", recipe["seed"]))  # a new adapter, and a new score, start at random
    with explained_model(recipe, f"the model `{source.name}`", source.base):
        model = load_base(recipe, plan, source)
        _keep_unpacked(model)
        if source.adapter or recipe["use_peft"]:
            model = put_adapter(model, source, adapter_config(model_keys(recipe), source, plan.trains, model))
    return Loaded(model, tokenizer, source)


def _keep_unpacked(model: PreTrainedModel) -> None:
    """Keep 4-bit weights as training reads them.

    On a CPU that computes bf16, bitsandbytes 0.50 packs them anew in the first forward pass of an evaluation
    (nn/modules.py, Linear4bit.forward), and what it multiplies packed weights by gets no gradient ever after.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_base(recipe: Recipe, plan: Plan, source: Source) -> PreTrainedModel:
    """The weights alone, without an adapter."""
    keys = model_keys(recipe, {key: plan.setting(key) for key in ("dtype", "attn_implementation")})
    return load_weights(
        source.base,
        plan.trains,
        dtype=keys.dtype,
        quantization=get_quantization_config(keys),
        device=plan.machine.device,
        revision=recipe["model_revision"],
        trust_remote_code=recipe["trust_remote_code"],
        attn_implementation=keys.attn_implementation,
        **as_mapping(recipe["model_init_kwargs"]),
    )


def load_weights(
    name: str,
    kind: str,
    *,
    quantization: BitsAndBytesConfig | None,
    device: str,
    revision: str,
    **how: Any,
) -> PreTrainedModel:
    """Load a policy, or a reward model: the same trunk with one score in place of the head.

    Args:
        name: A folder or a Hub id. A policy loaded as a reward model gets a new head, at random.
        kind: `POLICY` or `REWARD_MODEL`.
        quantization: Of the weights; the score is never quantised.
        device: Where quantised weights go; others stay on the CPU until the trainer moves them.
        revision: Of the Hub.
        how: What else transformers takes.
    """
    architecture = AutoModelForCausalLM
    if kind == REWARD_MODEL:
        architecture = AutoModelForSequenceClassification
        how["num_labels"] = 1
        if quantization is not None:
            trust = how.get("trust_remote_code", False)
            shape = describe_model(name, kind, revision=revision, trust_remote_code=trust, num_labels=1)
            quantization.llm_int8_skip_modules = head_names(shape)
    return architecture.from_pretrained(
        name,
        revision=revision,
        quantization_config=quantization,
        use_safetensors=True,
        device_map={"": _own_device(device)} if quantization else None,
        **how,
    )


def describe_model(name: str, kind: str, *, attn_implementation: str | None = None, **how: Any) -> PreTrainedModel:
    """A model on the meta device: its shape, without its weights.

    Args:
        name: A folder or a Hub id.
        kind: `POLICY` or `REWARD_MODEL`.
        attn_implementation: As transformers names it.
        how: What else `AutoConfig` takes.
    """
    trust = how.get("trust_remote_code", False)
    how.pop("dtype", None)
    config = AutoConfig.from_pretrained(name, **how)
    architecture = AutoModelForSequenceClassification if kind == REWARD_MODEL else AutoModelForCausalLM
    with init_empty_weights():
        model = architecture.from_config(config, trust_remote_code=trust, attn_implementation=attn_implementation)
    model.tie_weights()  # on the meta device what was shared has come apart
    return model


def _own_device(device: str) -> str:
    """The device of this process; launchers number those of one machine in LOCAL_RANK."""
    return f"{device}:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def as_mapping(value: Any) -> dict[str, Any]:
    """A mapping that TRL lets people write as JSON text too."""
    return dict(json.loads(value) if isinstance(value, str) else value or {})


def load_for_generation(
    name: str,
    *,
    dtype: str,
    device: str,
    model_revision: str = "main",
    trust_remote_code: bool = False,
    quantisation: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run, a model folder or a Hub id, to ask it questions.

    Args:
        name: What to load.
        dtype: Of its weights.
        device: Where to.
        model_revision: Of a base on the Hub, as the run was trained with.
        trust_remote_code: As the run's recipe said.
        quantisation: Keys such as `load_in_4bit`, for the weights below its adapter.

    Raises:
        RecipeError: when it holds no model.
        EnvironmentFault: when the hub cannot be reached.
    """
    revision = None if Path(name).exists() else model_revision
    quantized = get_quantization_config(ModelConfig(**(quantisation or {}), dtype=dtype))
    how = {
        "quantization": quantized, "device": device, "revision": model_revision, "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    if look_into(name).holds == REWARD_MODEL:
        raise RecipeError(f"`{name}` is a reward model, which answers nothing", hint=f"rlhf score {name} FILE")
    with explain_broken(name):
        if (Path(name) / ADAPTER_CONFIG).exists():
            base = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
            model = load_weights(base, POLICY, **how)
            model = PeftModel.from_pretrained(model, name)
        else:
            model = load_weights(name, POLICY, **how)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ensure_chat_template(tokenizer)
    return (model if quantized else model.to(device)).eval(), tokenizer


@contextmanager
def trained_in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Hold every trainable parameter in fp32 and at its value, whatever is built around the model meanwhile.

    In bf16 small steps vanish; and TRL rounds 4-bit adapters to bf16 while PEFT loads them as fp32, so that a continued
    adapter would not start where it ended, and a resumed run would go other ways than one that was never stopped.
    """
    kept = {parameter: parameter.data.float() for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, data in kept.items():
        if parameter.dtype != torch.float32:
            parameter.data = data.to(parameter.device)


@contextmanager
def explain_broken(name: str) -> Iterator[None]:
    """Turn what transformers raises for a folder or a Hub id that cannot be used into one clear error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(f"`{name}` does not fit into memory: {first_line(error)}") from error
    except _BROKEN as error:
        if not Path(name).exists():
            raise EnvironmentFault(f"there is no model `{name}` here, and the Hub does not give it") from None
        raise RecipeError(f"`{name}` holds no model to ask: {first_line(error)}") from None


@contextmanager
def explained_model(recipe: Recipe, what: str, name: str) -> Iterator[None]:
    """Turn what transformers raises for an unusable model into one clear error."""
    where = recipe.where("model_name_or_path")
    try:
        yield
    except ImportError as error:
        raise EnvironmentFault(f"cannot load {what}: {first_line(error)}", where=where) from error
    except _BROKEN as error:
        if not Path(name).exists() and isinstance(error, OSError):
            raise EnvironmentFault(
                f"cannot load {what}: there is no such folder here, and the Hub does not give it",
                where=where,
                hint="`hf download` fetches it where there is a network; HF_HUB_OFFLINE=1 keeps off the network",
            ) from error
        raise RecipeError(f"cannot load {what}: {first_line(error)}", where=where) from error
