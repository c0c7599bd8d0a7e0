"""What a command that reads a recipe says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.recipe import Recipe


def _nothing_more(recipe: Recipe) -> None:
    pass


@dataclass(frozen=True)
class Command:
    """A command that reads a recipe."""

    command: str
    """Its name, and the name of its schema."""
    summary: str
    """One line of help."""
    config_classes: Callable[[], tuple[type, ...]]
    """The dataclasses whose fields are the recipe's keys. Imports TRL, so only `make schema` calls it."""
    shared: tuple[str, ...] | None = field(default=None, kw_only=True)
    """Which it has of the keys that are ours for every command; None means all."""
    keys: Mapping[str, dict[str, Any]] = field(default_factory=dict, kw_only=True)
    """Keys beyond TRL's, as JSON Schema."""
    narrowed: Mapping[str, dict[str, Any]] = field(default_factory=dict, kw_only=True)
    """What TRL's keys leave open in this command: choices and ranges, added to the schema of each."""
    refused: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Keys that people try and that it does not have, and why, or what to write instead."""
    rules: tuple[dict[str, Any], ...] = field(default=(), kw_only=True)
    """Keys that do not go together, beyond `RULES` of the overlay."""
    check: Callable[[Recipe], None] = field(default=_nothing_more, kw_only=True)
    """Raises for what no schema says of its keys."""
    required: tuple[tuple[str, ...], ...] = field(
        default=(("model_name_or_path",), ("dataset_name", "datasets")), kw_only=True
    )
    """One key of each group must be there."""
    starter: str = field(default="", kw_only=True)
    """The recipe that `rlhf init` writes."""
    starter_data: str = field(default="trl-lib/Capybara", kw_only=True)
    """The dataset it names."""
