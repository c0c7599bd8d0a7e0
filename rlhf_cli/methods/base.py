"""What a method says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from rlhf_cli.data import Encoded
    from rlhf_cli.models import Policy
    from rlhf_cli.plan import Plan
    from rlhf_cli.recipe import Recipe


@dataclass(frozen=True)
class Encodings:
    """The rows of a run as its trainer takes them."""

    train: Dataset
    test: Dataset | None


@dataclass(frozen=True)
class Method:
    """One way to train: its keys, its rows, its trainer."""

    command: str
    """The command, and the name of its schema."""
    summary: str
    """One line of help."""
    config_classes: Callable[[], tuple[type, ...]]
    """The dataclasses whose fields are the recipe's keys. Imports TRL, so only `make schema` calls it."""
    rows: str
    """The kind of row it trains on, as `rows.py` names them."""
    encode: Callable[[Dataset, PreTrainedTokenizerBase, Recipe, str], Encoded]
    """Rows into tokens: of the split "train" or "test", by the tokenizer and the recipe with `defaults` filled in."""
    build_config: Callable[[Plan], TrainingArguments]
    """What its trainer is told; TRL checks it. This and `build_trainer` are where a method imports TRL."""
    build_trainer: Callable[[TrainingArguments, Policy, Encodings], Trainer]
    """The trainer, ready to train."""
    keys: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Keys beyond TRL's, as JSON Schema."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Changes of TRL's defaults, for keys that the recipe leaves out; printed at the start of a run."""
    roles: tuple[str, ...] = ("policy",)
    """The models that the plan counts memory for."""
    starter: str = ""
    """The recipe that `rlhf init` writes."""
