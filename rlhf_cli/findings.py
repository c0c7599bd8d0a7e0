"""What `check --data` finds: counts, lengths, and one row as the model will read it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_cli.data import Encoded
from rlhf_cli.machine import quietly
from rlhf_cli.methods.base import Method
from rlhf_cli.models import find_source
from rlhf_cli.prepare import Material, gather
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import IGNORED_LABEL
from rlhf_cli.terminal import paint, printable


@dataclass(frozen=True)
class Findings:
    """The data of a recipe, described."""

    sources: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    """By split."""
    lengths: dict[str, float]
    """Tokens a training row: median, 95th percentile, longest."""
    max_length: int | None
    template: str
    """Whose chat template renders the rows, and how the loss mask is found."""
    example: list[tuple[str, bool]]
    """The first row in pieces: text, and whether it carries loss."""

    def as_json(self) -> dict[str, Any]:
        """The findings as a JSON object."""
        return asdict(self)

    def as_text(self) -> str:
        """The findings as they are shown to a person."""
        train = self.counts["train"]
        lines = [
            f"{split:<9} {c['read']:,} rows: {c['used']:,} used, {c['bad']} bad, {c['masked']} without loss"
            for split, c in self.counts.items()
        ]
        lines.append(f"template  {self.template}")
        lines.append("tokens    " + ", ".join(f"{name} {value:,.0f}" for name, value in self.lengths.items()))
        share = train["truncated"] / max(1, train["used"])
        lines.append(
            f"truncated {train['truncated']:,} rows ({share:.1%}) are longer than max_length {self.max_length}"
        )
        lines.append(f"loss      {train['loss_tokens']:,} of {train['tokens']:,} tokens")
        shown = "".join(_show_piece(text, loss) for text, loss in self.example)
        return "\n".join([*lines, "", "the first row, ⟦what carries loss⟧:", shown])


def inspect_data(recipe: Recipe, method: Method) -> Findings:
    """Read every row of a recipe and describe what the model will see.

    Raises:
        UserError: when rows or model folder are unusable.
    """
    with quietly():
        material = gather(recipe, method, find_source(recipe))
    splits: dict[str, Encoded] = {"train": material.train}
    if material.test:
        splits["test"] = material.test
    lengths = sorted(material.train.lengths)
    return Findings(
        sources=material.rows.sources,
        counts={name: asdict(split.counts) for name, split in splits.items()},
        lengths={
            "median": statistics.median(lengths),
            "95th percentile": lengths[int(0.95 * (len(lengths) - 1))],
            "longest": lengths[-1],
        },
        max_length=recipe["max_length"],
        template=_describe_template(material, recipe),
        example=_pieces(material, recipe["max_length"]),
    )


def _describe_template(material: Material, recipe: Recipe) -> str:
    if material.own_template:
        whose = "ours, since the tokenizer has none"
    else:
        whose = "the recipe's" if recipe["chat_template"] or recipe["chat_template_path"] else "the tokenizer's"
    how = "its generation marks" if material.renderer.marked_template else "rendering turn by turn"
    return f"{whose}; answers are found by {how}"


def _pieces(material: Material, max_length: int | None) -> list[tuple[str, bool]]:
    """The first training row, up to `max_length`, decoded in runs of tokens with and without loss."""
    first = material.train.dataset[0]
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(first["input_ids"][:max_length], first["labels"][:max_length], strict=True):
        loss = label != IGNORED_LABEL
        if runs and runs[-1][1] == loss:
            runs[-1][0].append(token)
        else:
            runs.append(([token], loss))
    pieces = [(str(material.tokenizer.decode(tokens)), loss) for tokens, loss in runs]
    cut = max_length is not None and len(first["input_ids"]) > max_length
    return [*pieces, ("… (cut at max_length)", False)] if cut else pieces


def _show_piece(text: str, loss: bool) -> str:
    clean = printable(text)
    return f"⟦{paint(clean, 'good')}⟧" if loss else clean
