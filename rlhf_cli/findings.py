"""What `check --data` finds in the tokens of the rows, and one row as the model will read it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_cli.data import Encoded, sequences_of
from rlhf_cli.machine import quietly
from rlhf_cli.methods.base import Method
from rlhf_cli.model_source import find_source
from rlhf_cli.prepare import Material, gather
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import IGNORED_LABEL, Tokens, marked_template
from rlhf_cli.rows import row_text
from rlhf_cli.survey import Finding, draw_histogram, histogram, list_findings
from rlhf_cli.terminal import paint, printable


@dataclass(frozen=True)
class TokenFindings:
    """What a tokenizer makes of the rows."""

    counts: dict[str, dict[str, int]]
    """By split."""
    lengths: list[int]
    """Tokens of each training row."""
    max_length: int | None
    template: str
    """Whose chat template renders the rows, and how the loss mask is found."""
    findings: list[Finding]
    example: list[tuple[str, bool]]
    """The first row in pieces: text, and whether it carries loss."""

    def as_json(self) -> dict[str, Any]:
        """The numbers as a JSON object."""
        return {
            "counts": self.counts,
            "lengths": histogram(self.lengths),
            "longest": max(self.lengths),
            "median": statistics.median(self.lengths),
            "max_length": self.max_length,
            "template": self.template,
            "findings": [asdict(finding) for finding in self.findings],
            "example": self.example,
        }

    def as_text(self) -> str:
        """The numbers as they are shown to a person."""
        train = self.counts["train"]
        splits = [
            f"{split:<9} {c['read']:,} rows: {c['used']:,} used, {c['bad']} bad, {c['masked']} {_why(c)}"
            for split, c in self.counts.items()
        ]
        share = train["truncated"] / max(1, train["used"])
        lines = [
            *draw_histogram(self.lengths, "tokens"),
            f"longest   {max(self.lengths):,} tokens, median {statistics.median(self.lengths):,.0f}",
            f"truncated {train['truncated']:,} rows ({share:.1%}) are longer than max_length {self.max_length}",
            *splits,
            f"loss      {self._describe_loss()}",
            f"template  {self.template}",
        ]
        shown = "".join(_show_piece(text, loss) for text, loss in self.example)
        parts = ["\n".join(lines), list_findings(self.findings), f"the first row, ⟦what carries loss⟧:\n{shown}"]
        return "\n\n".join(parts)

    def _describe_loss(self) -> str:
        train = self.counts["train"]
        if train["loss_tokens"] == 0:
            return f"on responses that are yet to be made, to {train['tokens']:,} tokens of prompts"
        if train["loss_tokens"] is None:
            return f"on one score an answer, read at its last token; {train['tokens']:,} tokens are read"
        return f"{train['loss_tokens']:,} of {train['tokens']:,} tokens"


def inspect_tokens(recipe: Recipe, method: Method) -> TokenFindings:
    """Turn every row of a recipe into tokens and describe what the model will see.

    Raises:
        UserError: when rows or model folder are unusable.
    """
    with quietly():
        material = gather(recipe, method, find_source(recipe, method.trains))
    splits: dict[str, Encoded] = {"train": material.train}
    if material.test:
        splits["test"] = material.test
    return TokenFindings(
        counts={name: asdict(split.counts) for name, split in splits.items()},
        lengths=material.train.lengths,
        max_length=recipe["max_length"],
        template=_describe_template(material, recipe),
        findings=list(_find(material, recipe["max_length"])),
        example=_pieces(material, recipe["max_length"]),
    )


def _find(material: Material, max_length: int | None) -> Iterator[Finding]:
    """What is odd about the tokenizer, or about the text it is given."""
    tokenizer, rows = material.tokenizer, material.rows.train
    yield from _find_lost(material, max_length)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        advice = f"both are `{tokenizer.eos_token}`; harmless here, where padding is masked by its place"
        yield Finding("tokenizer with pad = eos", 1, [], advice)
    opens = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    first = sequences_of(material.train.dataset[0])[0].input_ids
    starts = [token == tokenizer.bos_token_id for token in first[:2]]
    if opens and not starts[0]:
        yield Finding("missing BOS", 1, [], f"texts open with `{tokenizer.bos_token}`, the chat template does not")
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id != tokenizer.eos_token_id and starts == [True] * 2:
        yield Finding("doubled BOS", 1, [], f"the chat template writes `{tokenizer.bos_token}` a second time")
    special = re.compile("|".join(re.escape(token) for token in tokenizer.all_special_tokens if token))
    inside = sum(bool(special.search(row_text(example["row"]))) for example in rows)
    if inside:
        yield Finding("rows that spell a special token", inside, [], "it is read as the token itself; remove it")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
        unknown = sum(
            any(tokenizer.unk_token_id in tokens.input_ids for tokens in sequences_of(example))
            for example in material.train.dataset
        )
        if unknown:
            yield Finding("rows with unknown tokens", unknown, [], "the tokenizer has no token for some characters")


def _find_lost(material: Material, max_length: int | None) -> Iterator[Finding]:
    """What `max_length` takes away."""
    train = material.train.counts
    if train.masked and train.loss_tokens is None:
        advice = "they are left out, since a score of half an answer says nothing; raise `max_length`"
        yield Finding("pairs longer than max_length", train.masked, [], advice)
    elif train.masked and not train.loss_tokens:
        advice = "left out: no room for `response_length`; raise `max_length`, or shorten the prompts"
        yield Finding("prompts that are too long", train.masked, [], advice)
    elif train.masked:
        advice = "left out: the prompt fills `max_length`; raise it, or shorten the prompts"
        yield Finding("rows without loss", train.masked, [], advice)
    if train.truncated:
        yield Finding("truncated rows", train.truncated, [], "they lose their end; raise `max_length`, or split them")
    same = _same_within(material, max_length) if train.sequences == 2 and train.truncated else 0
    if same:
        yield Finding("pairs whose answers are the same within max_length", same, [], "they teach nothing; raise it")


def _describe_template(material: Material, recipe: Recipe) -> str:
    if material.own_template:
        whose = "ours, since the tokenizer has none"
    else:
        whose = "the recipe's" if recipe["chat_template"] or recipe.get("chat_template_path") else "the tokenizer's"
    how = "its generation marks" if marked_template(material.tokenizer) else "rendering turn by turn"
    return f"{whose}; answers are found by {how}"


def _same_within(material: Material, max_length: int | None) -> int:
    """Pairs whose answers differ only behind where they are cut."""
    cut = [[tokens.input_ids[:max_length] for tokens in sequences_of(each)] for each in material.train.dataset]
    return sum(chosen == rejected for chosen, rejected in cut)


def _why(counts: dict[str, Any]) -> str:
    return "without loss" if counts["loss_tokens"] else "too long"


def _pieces(material: Material, max_length: int | None) -> list[tuple[str, bool]]:
    """The first training row, up to `max_length`, decoded in runs of tokens with and without loss."""
    sequences = sequences_of(material.train.dataset[0])
    pieces: list[tuple[str, bool]] = []
    for name, tokens in zip(("chosen", "rejected") if len(sequences) > 1 else ("",), sequences, strict=True):
        head = [(f"{name}:\n", False)] if name else []
        tail = [("\n\n", False)] if name == "chosen" else []
        pieces += [*head, *_pieces_of(tokens, material.tokenizer, max_length), *tail]
    return pieces


def _pieces_of(
    tokens: Tokens, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[tuple[str, bool]]:  # fmt: skip
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(tokens.input_ids[:max_length], tokens.labels[:max_length], strict=True):
        loss = label != IGNORED_LABEL
        if runs and runs[-1][1] == loss:
            runs[-1][0].append(token)
        else:
            runs.append(([token], loss))
    pieces = [(str(tokenizer.decode(ids)), loss) for ids, loss in runs]
    cut = max_length is not None and len(tokens.input_ids) > max_length
    return [*pieces, ("… (cut at max_length)", False)] if cut else pieces


def _show_piece(text: str, loss: bool) -> str:
    clean = printable(text)
    return f"⟦{paint(clean, 'good')}⟧" if loss else clean
