"""What a method says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf_cli.command import Command
from rlhf_cli.model_source import Role, Source
from rlhf_cli.plan import POLICY, REFERENCE, Counts, Decision, Machine, Plan, Schedule, schedule_examples
from rlhf_cli.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from rlhf_cli.data import Encoded, Encodings
    from rlhf_cli.models import Loaded


def _nothing_more(recipe: Recipe, machine: Machine) -> Mapping[str, Decision]:
    return {}


def _trained_alone(recipe: Recipe, source: Source) -> tuple[Role, ...]:
    return (trained(POLICY, recipe, source),)


def trained(kind: str, recipe: Recipe, source: Source) -> Role:
    """The role of the model that a run trains: its weights, a new adapter on them, or the adapter that it was given."""
    if source.adapter:
        return Role(kind, f"the adapter in {source.name}, trained on; its base {source.base} stays", source, kind)
    what = f"a new adapter on {source.name}" if recipe["use_peft"] else f"all weights of {source.name}"
    return Role(kind, what, source, kind)


def reference(recipe: Recipe, source: Source) -> Role:
    """The role of the policy as it was: off, where that is a new adapter, else a frozen copy of what trains."""
    if source.adapter:
        return Role(REFERENCE, "a frozen copy of that adapter, on the same base", source, trains=False, copies=True)
    if recipe["use_peft"]:
        return Role(REFERENCE, "the policy with its adapter off", source, trains=False, takes=False)
    return Role(REFERENCE, "a frozen copy of the policy", source, trains=False, copies=True)


@dataclass(frozen=True)
class Method(Command):
    """One way to train: its keys, its rows, its trainer."""

    rows: str
    """The kind of row it trains on, as `rows.py` names them."""
    encode: Callable[[Dataset, PreTrainedTokenizerBase, Recipe, str], Encoded]
    """Rows into tokens: of the split "train" or "test", by the tokenizer and the recipe with `defaults` filled in."""
    build_config: Callable[[Plan], TrainingArguments]
    """What its trainer is told; TRL checks it. This and `build_trainer` are where a method imports TRL."""
    build_trainer: Callable[[TrainingArguments, Loaded, Encodings], Trainer]
    """The trainer, ready to train."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Changes of TRL's defaults, for keys that the recipe leaves out; printed at the start of a run."""
    decide: Callable[[Recipe, Machine], Mapping[str, Decision]] = _nothing_more
    """What it decides for keys that the recipe leaves out, by what it runs on; wins over what others would decide."""
    trains: str = POLICY
    """What comes out: a policy, or a reward model, which has a score for a head."""
    roles: Callable[[Recipe, Source], tuple[Role, ...]] = _trained_alone
    """The parts that models play, the one that trains first; the plan counts their memory, and says what is shared."""
    schedule: Callable[[Recipe, Counts, Machine], Schedule] = schedule_examples
    """How many steps there are."""
