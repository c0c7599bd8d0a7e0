"""Where a model comes from, and what its folder holds, seen before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.errors import RecipeError
from rlhf_cli.plan import POLICY, REWARD_MODEL
from rlhf_cli.recipe import Recipe

ADAPTER_CONFIG = "adapter_config.json"
_SHAPE = {
    "lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}  # fmt: skip
"""Recipe keys that shape an adapter, and their names in its configuration."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    name: str
    """As the recipe names it: a folder or a Hub id."""
    base: str
    """The weights: the same, or the base below an adapter."""
    adapter: str | None
    """The adapter folder, where `name` is one."""
    holds: str | None = None
    """`POLICY` or `REWARD_MODEL`; None where that is not known before the Hub is asked."""

    def is_adapter_on_base_of(self, other: Source) -> bool:
        """Whether this is an adapter on the very weights that the other has, so that both can go on one copy."""
        if self.adapter is None:
            return False
        here, there = Path(self.base), Path(other.base)
        return self.base == other.base or (here.exists() and there.exists() and here.samefile(there))


@dataclass(frozen=True)
class Role:
    """A part that a model plays in a run, and whose weights it is."""

    name: str
    text: str
    """Whose weights these are, for people."""
    source: Source
    kind: str = POLICY
    """`POLICY` or `REWARD_MODEL`: what it is loaded as."""
    trains: bool = True
    takes: bool = True
    """Whether it takes memory of its own."""
    copies: bool = False
    """Whether it is a frozen copy of what trains."""
    whole: bool = False
    """Whether all its weights train, whatever the recipe says of adapters and quantisation."""


def find_source(recipe: Recipe, trains: str) -> Source:
    """See what `model_name_or_path` names, and check a local folder before anything is loaded.

    Args:
        recipe: The recipe.
        trains: `POLICY` or `REWARD_MODEL`; a reward model may start from either, a policy only from one.

    Raises:
        RecipeError: when it is no model folder, or not one the recipe can train.
    """
    name = str(recipe["model_name_or_path"])
    where = recipe.where("model_name_or_path")
    source = look_into(name, where=where)
    if recipe["model_revision"] != "main" and Path(name).exists() and source.adapter is None:
        raise RecipeError(
            f"`model_revision` is for models of the Hub, and `{name}` is a folder here",
            where=recipe.where("model_revision"),
            hint="remove it",
        )
    if source.holds == REWARD_MODEL and trains == POLICY:
        raise RecipeError(
            f"`{name}` is a reward model, and {recipe.method} trains a policy",
            where=where,
            hint=f"it was trained from `{source.base}`" if source.adapter else "name the model it was trained from",
        )
    if source.adapter and (Path(source.adapter) / "members").is_dir():
        raise RecipeError(
            f"`{name}` is an ensemble, and only one model can be trained on",
            where=where,
            hint=f"name one of its members, such as `{name}/members/2`",
        )
    if source.adapter:
        _refuse_other_adapter(recipe, _read_config(Path(source.adapter) / ADAPTER_CONFIG, where), name)
    return source


def look_into(name: str, *, where: str | None = None) -> Source:
    """Tell a policy, a reward model, and an adapter of either, in a local folder; a Hub id is taken as it is.

    Raises:
        RecipeError: when it is no model folder, has no weights, or more than one score.
    """
    path = Path(os.path.expanduser(name))
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise RecipeError(f"there is no model folder `{name}`", where=where)
        return Source(name, name, None)
    if not path.is_dir():
        raise RecipeError(f"`{name}` is a file, not a model folder", where=where)
    if (path / ADAPTER_CONFIG).exists():
        adapter = _read_config(path / ADAPTER_CONFIG, where)
        base = str(adapter.get("base_model_name_or_path") or "")
        if not base:
            raise RecipeError(f"the adapter in `{name}` does not name its base model", where=where)
        _refuse_without_weights(path, name, where)
        return Source(name, base, str(path), REWARD_MODEL if adapter.get("task_type") == "SEQ_CLS" else POLICY)
    config = path / "config.json"
    if not config.exists():
        raise RecipeError(f"`{name}` holds no model: config.json is missing", where=where)
    holds = what_it_holds(_read_config(config, where), name, where=where)
    _refuse_without_weights(path, name, where)
    return Source(name, str(path), None, holds)


def look_into_reward_model(name: str, *, where: str | None = None) -> Source:
    """The same of one that is to be a reward model.

    Raises:
        RecipeError: also when it is a policy.
    """
    source = look_into(name, where=where)
    if source.holds == POLICY:
        raise RecipeError(
            f"`{name}` is a policy, not a reward model", where=where, hint="`rlhf train-reward` makes one from it"
        )
    return source


def what_it_holds(config: Mapping[str, Any], name: str, *, where: str | None = None) -> str:
    """Whether a configuration is of a policy or of a reward model.

    Raises:
        RecipeError: when it is of a classifier with more than one label, which gives no score.
    """
    if not any("ForSequenceClassification" in str(each) for each in config.get("architectures") or []):
        return POLICY
    labels = len(config.get("id2label") or {"0": "", "1": ""})  # two is what transformers assumes
    if labels != 1:
        raise RecipeError(
            f"`{name}` is a classifier with {labels} labels; a reward model has one, its score",
            where=where,
            hint="name a reward model, or the policy to make one from",
        )
    return REWARD_MODEL


def _refuse_without_weights(path: Path, name: str, where: str | None) -> None:
    if next(path.glob("*.safetensors"), None):
        return
    if next(path.glob("*.bin"), None):
        raise RecipeError(
            f"`{name}` holds pickled weights (*.bin) only, which can run code when they are loaded",
            where=where,
            hint="save it as safetensors first, where you trust it: `model.save_pretrained(FOLDER)`",
        )
    raise RecipeError(f"`{name}` holds no weights: no *.safetensors file", where=where)


def _read_config(path: Path, where: str | None) -> dict[str, Any]:
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
    for key, theirs in _SHAPE.items():
        if key in recipe and recipe[key] != adapter.get(theirs):
            raise _other_shape(recipe, key, name, adapter.get(theirs))
    wanted, there = recipe["lora_target_modules"], adapter.get("target_modules")
    if isinstance(wanted, list) and wanted != ["all-linear"] and set(wanted) != set(there or []):
        raise _other_shape(recipe, "lora_target_modules", name, ", ".join(sorted(there or [])))


def _other_shape(recipe: Recipe, key: str, name: str, there: Any) -> RecipeError:
    wanted = ", ".join(recipe[key]) if isinstance(recipe[key], list) else recipe[key]
    return RecipeError(
        f"`{key}` is {wanted}, but the adapter in `{name}` has {there}",
        where=recipe.where(key),
        hint=f"remove `{key}`: a continued adapter keeps its shape",
    )
