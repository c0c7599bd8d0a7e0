"""Load, quantise, adapt, save: the policy and its tokenizer."""

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
from jinja2 import TemplateError, TemplateSyntaxError
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash
from trl import ModelConfig, get_peft_config, get_quantization_config

from rlhf_cli.errors import EnvironmentFault, RecipeError, first_line
from rlhf_cli.plan import Plan
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import ensure_chat_template

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
class Source:
    """Where a model comes from."""

    name: str
    """As the recipe names it: a folder or a Hub id."""
    base: str
    """The weights: the same, or the base below an adapter."""
    adapter: str | None
    """The adapter folder, where `name` is one."""


@dataclass(frozen=True)
class Policy:
    """The model that trains, and its tokenizer."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    source: Source


def find_source(recipe: Recipe) -> Source:
    """See what `model_name_or_path` names, and check a local folder before anything is loaded.

    Raises:
        RecipeError: when it is no model folder, or not one the recipe can train.
    """
    name = str(recipe["model_name_or_path"])
    where = recipe.where("model_name_or_path")
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise RecipeError(f"there is no model folder `{name}`", where=where)
        return Source(name, name, None)
    if recipe["model_revision"] != "main" and not (path / "adapter_config.json").exists():
        raise RecipeError(
            f"`model_revision` is for models of the Hub, and `{name}` is a folder here",
            where=recipe.where("model_revision"),
            hint="remove it",
        )
    if not path.is_dir():
        raise RecipeError(f"`{name}` is a file, not a model folder", where=where)
    if (path / "adapter_config.json").exists():
        adapter = _read_config(path / "adapter_config.json", where)
        base = str(adapter.get("base_model_name_or_path") or "")
        if not base:
            raise RecipeError(f"the adapter in `{name}` does not name its base model", where=where)
        _refuse_other_adapter(recipe, adapter, name)
        _refuse_without_weights(path, name, where)
        return Source(name, base, str(path))
    config = path / "config.json"
    if not config.exists():
        raise RecipeError(f"`{name}` holds no model: config.json is missing", where=where)
    _read_config(config, where)
    _refuse_without_weights(path, name, where)
    return Source(name, str(path), None)


def _refuse_without_weights(path: Path, name: str, where: str) -> None:
    if next(path.glob("*.safetensors"), None):
        return
    if next(path.glob("*.bin"), None):
        raise RecipeError(
            f"`{name}` holds pickled weights (*.bin) only, which can run code when they are loaded",
            where=where,
            hint="save it as safetensors first, where you trust it: `model.save_pretrained(FOLDER)`",
        )
    raise RecipeError(f"`{name}` holds no weights: no *.safetensors file", where=where)


def _read_config(path: Path, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise RecipeError(f"{path} is damaged: {error}", where=where) from None


def _refuse_other_adapter(recipe: Recipe, adapter: Mapping[str, Any], name: str) -> None:
    """An adapter is continued as it is: a recipe that asks for another shape of it is an error."""
    if "use_peft" in recipe and not recipe["use_peft"]:
        raise RecipeError(
            f"`{name}` is an adapter, which is trained on, but the recipe says `use_peft: false`",
            where=recipe.where("use_peft"),
            hint="merge the adapter into its base first, or remove `use_peft: false`",
        )
    for key, there in (("lora_r", adapter.get("r")), ("lora_alpha", adapter.get("lora_alpha"))):
        if key in recipe and recipe[key] != there:
            raise RecipeError(
                f"`{key}` is {recipe[key]}, but the adapter in `{name}` has {there}",
                where=recipe.where(key),
                hint=f"remove `{key}`: a continued adapter keeps its shape",
            )


# --- tokenizer ------------------------------------------------------------------------------------------------


def load_tokenizer(recipe: Recipe, source: Source) -> tuple[PreTrainedTokenizerBase, bool]:
    """Load the tokenizer, give it a chat template and a padding token.

    Returns:
        The tokenizer, and whether it got our chat template.

    Raises:
        RecipeError: when there is none, or the recipe names tokens it does not have.
    """
    where = recipe.where("model_name_or_path")
    folder = source.adapter if source.adapter and _has_tokenizer(Path(source.adapter)) else source.base
    if Path(folder).is_dir() and not _has_tokenizer(Path(folder)):
        raise RecipeError(f"`{source.name}` has no tokenizer: tokenizer.json is missing", where=where)
    with explained_model(recipe, f"the tokenizer of `{source.name}`", folder):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=recipe["model_revision"], trust_remote_code=recipe["trust_remote_code"]
        )
    if not tokenizer.is_fast:
        raise RecipeError(f"the tokenizer of `{source.name}` cannot tell where its tokens stand in a text", where=where)
    for key in ("eos_token", "pad_token"):
        if recipe[key] is not None:
            if recipe[key] not in tokenizer.get_vocab():
                raise RecipeError(f"the tokenizer has no token `{recipe[key]}`", where=recipe.where(key))
            setattr(tokenizer, key, recipe[key])
    if tokenizer.eos_token is None:
        raise RecipeError("the tokenizer has no end-of-sequence token", where=where, hint="name one with `eos_token`")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own = ensure_chat_template(tokenizer, _recipe_template(recipe, tokenizer))
    _refuse_broken_template(recipe, tokenizer)
    return tokenizer, own


def _refuse_broken_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that is not Jinja; one that refuses this conversation may still take the rows."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except TemplateSyntaxError as error:
        key = next((key for key in ("chat_template", "chat_template_path") if recipe[key]), "model_name_or_path")
        raise RecipeError(
            f"the chat template is no Jinja: line {error.lineno}: {error.message}", where=recipe.where(key)
        ) from None
    except (TemplateError, ValueError, TypeError, KeyError, IndexError):
        return


def _has_tokenizer(folder: Path) -> bool:
    return any(
        (folder / name).exists()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    )


def _recipe_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template that the recipe gives, as text."""
    if recipe["chat_template"] is not None:
        return str(recipe["chat_template"])
    path = recipe["chat_template_path"]
    if path is None:
        return None
    if Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    if str(path).endswith((".jinja", ".jinja2")):
        raise RecipeError(f"there is no chat template `{path}`", where=recipe.where("chat_template_path"))
    with explained_model(recipe, f"the tokenizer `{path}`", str(path)):
        other = AutoTokenizer.from_pretrained(path, trust_remote_code=recipe["trust_remote_code"])
    template = str(other.chat_template or "")
    lacking = [token for token in other.all_special_tokens if token in template and token not in tokenizer.get_vocab()]
    if not template or lacking:
        what = f"uses tokens that this model does not have: {', '.join(lacking)}" if lacking else "does not exist"
        raise RecipeError(f"the chat template of `{path}` {what}", where=recipe.where("chat_template_path"))
    return template


# --- model ------------------------------------------------------------------------------------------------------


def fingerprint_model(recipe: Recipe, source: Source) -> str:
    """What tells one model from another: the Hub's commit, or a hash over samples of every weight file.

    A whole hash of a large model would take minutes; 16 blocks of each file, its size and its name are read instead.
    """
    digest = hashlib.sha256()
    for name in filter(None, (source.base, source.adapter)):
        folder = Path(name)
        if not folder.is_dir():
            file_here = cached_file(name, CONFIG_NAME, revision=recipe["model_revision"])
            digest.update(str(extract_commit_hash(file_here, None)).encode())
            continue
        for file in sorted(folder.glob("*.safetensors")):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as weights:
                for block in range(_SAMPLED_BLOCKS):
                    weights.seek(block * max(0, size - _BLOCK_BYTES) // (_SAMPLED_BLOCKS - 1))
                    digest.update(weights.read(_BLOCK_BYTES))
    return digest.hexdigest()


def adapter_config(recipe: Recipe, source: Source) -> PeftConfig:
    """The adapter that is continued, or the one that the recipe describes."""
    if source.adapter:
        return PeftConfig.from_pretrained(source.adapter)
    return get_peft_config(_model_config(recipe, {}))


def _model_config(recipe: Recipe, decided: Mapping[str, Any]) -> ModelConfig:
    """TRL's view of the model keys."""
    values = {**recipe.values, **decided}
    return ModelConfig(**{key: values[key] for key in ModelConfig.__dataclass_fields__ if key in values})


def load_policy(recipe: Recipe, plan: Plan, source: Source, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """Load the weights, quantise them, and put the adapter on.

    Raises:
        RecipeError: when the folder holds no model that can be loaded.
        EnvironmentFault: when the hub cannot be reached.
    """
    model_config = _model_config(recipe, {"dtype": plan.setting("dtype")})
    set_seed(recipe["seed"])  # a new adapter starts at random
    quantization = get_quantization_config(model_config)
    with explained_model(recipe, f"the model `{source.name}`", source.base):
        model = AutoModelForCausalLM.from_pretrained(
            source.base,
            dtype=model_config.dtype,
            revision=recipe["model_revision"],
            trust_remote_code=recipe["trust_remote_code"],
            attn_implementation=model_config.attn_implementation,
            quantization_config=quantization,
            use_safetensors=True,
            device_map={"": _own_device(plan.machine.device)} if quantization else None,
            **as_mapping(recipe["model_init_kwargs"]),
        )
        if source.adapter:
            model = PeftModel.from_pretrained(model, source.adapter, is_trainable=True)
        elif recipe["use_peft"]:
            model = get_peft_model(model, adapter_config(recipe, source))
    return Policy(model, tokenizer, source)


def _own_device(device: str) -> str:
    """The device of this process; launchers number those of one machine in LOCAL_RANK."""
    return f"{device}:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def as_mapping(value: Any) -> dict[str, Any]:
    """A mapping that TRL lets people write as JSON text too."""
    return dict(json.loads(value) if isinstance(value, str) else value or {})


def load_for_generation(
    name: str, *, dtype: str, device: str, model_revision: str = "main", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run, a model folder or a Hub id, to ask it questions.

    Args:
        name: What to load.
        dtype: Of its weights.
        device: Where to.
        model_revision: Of a base on the Hub, as the run was trained with.
        trust_remote_code: As the run's recipe said.

    Raises:
        RecipeError: when it holds no model.
        EnvironmentFault: when the hub cannot be reached.
    """
    revision = None if Path(name).exists() else model_revision
    how = {
        "dtype": dtype, "revision": model_revision, "trust_remote_code": trust_remote_code, "use_safetensors": True,
    }  # fmt: skip
    try:
        if (Path(name) / "adapter_config.json").exists():
            base = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
            model = AutoModelForCausalLM.from_pretrained(base, **how)
            model = PeftModel.from_pretrained(model, name)
        else:
            model = AutoModelForCausalLM.from_pretrained(name, **how)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except _BROKEN as error:
        if not Path(name).exists():
            raise EnvironmentFault(f"there is no model `{name}` here, and the Hub does not give it") from None
        raise RecipeError(f"`{name}` holds no model to ask: {first_line(error)}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ensure_chat_template(tokenizer)
    return model.to(device).eval(), tokenizer


def keep_trained_in_fp32(model: torch.nn.Module) -> None:
    """Hold every trainable parameter in fp32.

    In bf16 small steps vanish; and TRL casts 4-bit adapters to bf16 while PEFT loads them as fp32, so that a resumed
    run would go other ways than one that was never stopped.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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
