"""What a method says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf_cli.command import Command
from rlhf_cli.plan import POLICY

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from rlhf_cli.data import Encoded, Encodings
    from rlhf_cli.model_source import Source
    from rlhf_cli.models import Loaded
    from rlhf_cli.plan import Plan
    from rlhf_cli.recipe import Recipe


def _policy_only(recipe: Recipe, source: Source) -> tuple[str, ...]:
    return (POLICY,)


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
    trains: str = POLICY
    """What comes out: a policy, or a reward model, which has a score for a head."""
    roles: Callable[[Recipe, Source], tuple[str, ...]] = _policy_only
    """The models that the plan counts memory for."""
