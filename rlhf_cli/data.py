"""Checked rows into datasets: mixed, held out, and turned into tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset, Features, Json, concatenate_datasets
from trl import pack_dataset

from rlhf_cli.errors import DataError
from rlhf_cli.plan import Counts
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import IGNORED_LABEL, Renderer
from rlhf_cli.sources import Checked, Tally, entries_of, hold_out, read_entry

_CHUNK = 1000
_ROW = Features({"row": Json()})


@dataclass(frozen=True)
class Rows:
    """The rows of a run, checked and read into one of the four shapes."""

    train: Dataset
    """One column, `row`."""
    test: Dataset | None
    sources: list[dict[str, Any]]
    """What was read: name, layout, rows, and the hash of every local file."""
    bad: int
    """Rows left out with `skip_bad_rows`."""


@dataclass(frozen=True)
class Encoded:
    """A split as the trainer takes it, and what became of its rows."""

    dataset: Dataset
    """Columns `input_ids` and `labels`."""
    counts: Counts
    lengths: list[int]
    """Tokens of each row, before truncation."""


# --- rows -------------------------------------------------------------------------------------------------------


def load_rows(recipe: Recipe, kind: str) -> Rows:
    """Read and check every row the recipe names.

    Args:
        recipe: The recipe.
        kind: The kind of row that its method trains on.

    Raises:
        DataError: when rows are bad (named by file and line) or a split is missing.
        EnvironmentFault: when the hub cannot be reached.
    """
    train = _load_split(recipe, recipe["dataset_train_split"], kind, first=True)
    wants_test = recipe["eval_strategy"] != "no" and recipe["test_split_size"] is None
    test = _load_split(recipe, recipe["dataset_test_split"], kind, first=False) if wants_test else None
    rows, held_out = train.rows, test.rows if test else None
    if recipe["test_split_size"] is not None:
        test_rows = hold_out(recipe, train.groups, len(train.rows))
        kept = sorted(set(range(len(train.rows))).difference(test_rows))
        rows, held_out = train.rows.select(kept), train.rows.select(test_rows)
    for split, name in ((rows, "train"), (held_out, "test")):
        if split is not None and not len(split):
            raise DataError(f"no rows are left in the {name} split", where=_named(recipe))
    parts = [part for part in (train, test) if part is not None]
    return Rows(
        train=rows,
        test=held_out,
        sources=[source for part in parts for source in part.tally.sources],
        bad=sum(part.tally.bad for part in parts),
    )


@dataclass
class _Split:
    rows: Dataset
    groups: list[Any]
    """Of each row, the value of the `split_by` column."""
    tally: Tally


def _load_split(recipe: Recipe, split: str, kind: str, *, first: bool) -> _Split:
    """Read one split of all the datasets that the recipe names, and mix them."""
    entries = entries_of(recipe)
    tally = Tally()
    parts = [_collect(recipe, read_entry(recipe, entry, split, tally, kind=kind, first=first)) for entry in entries]
    if tally.bad and not recipe["skip_bad_rows"]:
        raise tally.error()
    # What is evaluated on is left whole.
    fractions = [entry.get("fraction") if first else None for entry in entries]
    datasets = _take_fractions([rows for rows, _ in parts], fractions, recipe)
    groups = [group for (_, groups), rows in zip(parts, datasets, strict=True) for group in groups[: len(rows)]]
    return _Split(concatenate_datasets(datasets), groups, tally)


def _collect(recipe: Recipe, checked: Iterator[Checked]) -> tuple[Dataset, list[Any]]:
    """The rows as a dataset, and the group of each."""
    chunks = [Dataset.from_dict({"row": []}, features=_ROW)]
    groups: list[Any] = []
    while chunk := list(islice(checked, _CHUNK)):
        chunks.append(Dataset.from_list([{"row": each.row} for each in chunk], features=_ROW))
        groups += [each.group(recipe["split_by"]) for each in chunk]
    return concatenate_datasets(chunks), groups


def _take_fractions(datasets: list[Dataset], fractions: list[float | None], recipe: Recipe) -> list[Dataset]:
    """Cut a mixture to its fractions as TRL does: as large as it can be without taking a row twice.

    A fraction that stands alone is one of its dataset; TRL would take all of it.
    """
    given = [fraction for fraction in fractions if fraction is not None]
    if not given:
        return datasets
    if len(given) < len(datasets):
        raise DataError("`fraction` must be given for all datasets or for none", where=recipe.where("datasets"))
    if len(datasets) == 1:
        (rows,) = datasets
        return [rows.select(range(min(len(rows), round(given[0] * len(rows)))))]
    shares = [fraction / sum(given) for fraction in given]
    total = min(len(dataset) / share for dataset, share in zip(datasets, shares, strict=True))
    return [
        dataset.select(range(min(len(dataset), round(share * total))))
        for dataset, share in zip(datasets, shares, strict=True)
    ]


def _named(recipe: Recipe) -> str:
    return recipe.where("datasets" if recipe["datasets"] else "dataset_name")


# --- tokens -----------------------------------------------------------------------------------------------------


def encode_rows(rows: Dataset, renderer: Renderer, recipe: Recipe, *, bad: int = 0, packing: bool = False) -> Encoded:
    """Turn rows into tokens and labels, and foretell what the trainer will make of them.

    Args:
        rows: With the column `row`.
        renderer: For the run's tokenizer.
        recipe: For `max_length`, `truncation_mode`, `packing_strategy` and `dataset_num_proc`.
        bad: Rows left out before, for the counts.
        packing: Whether the trainer packs this split.
    """

    max_length, mode = recipe["max_length"], recipe["truncation_mode"]

    def encode(example: dict[str, Any]) -> dict[str, Any]:
        tokens = renderer.encode(example["row"])
        seen = _window(tokens.labels, max_length, mode)
        carrying = sum(label != IGNORED_LABEL for label in seen)
        return {"input_ids": tokens.input_ids, "labels": tokens.labels, "seen": len(seen), "carrying": carrying}

    # With a fingerprint given, none is computed, which would pickle the whole tokenizer.
    fingerprint = secrets.token_hex(8)
    mapped = rows.map(encode, remove_columns=["row"], num_proc=recipe["dataset_num_proc"], new_fingerprint=fingerprint)
    dataset = mapped.select_columns(["input_ids", "labels"])
    lengths = [len(ids) for ids in dataset.with_format("arrow")["input_ids"]]
    # TRL drops rows without loss only while it truncates, not while it packs.
    keeps_all = packing or max_length is None
    kept = [(s, c) for s, c in zip(mapped["seen"], mapped["carrying"], strict=True) if c or keeps_all]
    used, loss_tokens = [seen for seen, _ in kept], sum(carrying for _, carrying in kept)
    truncated = sum(length > max_length for length in lengths) if max_length else 0
    examples, longest = len(used), max(used, default=0)
    if packing and loss_tokens:
        packed = pack_dataset(dataset, max_length, recipe["packing_strategy"])
        examples, longest = len(packed), max_length
    counts = Counts(
        read=len(rows) + bad,
        bad=bad,
        masked=len(rows) - len(used),
        used=len(used),
        truncated=truncated,
        examples=examples,
        tokens=sum(used),
        loss_tokens=loss_tokens,
        longest=longest,
    )
    if not loss_tokens:
        raise DataError(
            f"no row carries loss within max_length {max_length}: prompts fill it",
            where=recipe.where("max_length"),
            hint="raise `max_length`",
        )
    return Encoded(dataset, counts, lengths)


def _window(labels: list[int], max_length: int | None, mode: str) -> list[int]:
    if max_length is None:
        return labels
    return labels[-max_length:] if mode == "keep_end" else labels[:max_length]
