"""Checked rows into datasets: mixed, held out, and turned into tokens."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value, concatenate_datasets
from trl import pack_dataset

from rlhf_cli.errors import DataError
from rlhf_cli.plan import Counts
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import IGNORED_LABEL, Renderer, Tokens
from rlhf_cli.rows import BadRow
from rlhf_cli.sources import Checked, Tally, entries_of, hold_out, read_entry

_CHUNK = 1000
_ROW = Features({"row": Json(), "where": Value("string")})
_TOKENS = Features({
    "input_ids": List(Value("int32")), "labels": List(Value("int32")), "seen": Value("int32"),
    "carrying": Value("int32"), "fault": Value("string"), "where": Value("string"),
})  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The rows of a run, checked and read into one of the four shapes."""

    train: Dataset
    """Columns `row`, and `where` it stands."""
    test: Dataset | None
    sources: list[dict[str, Any]]
    """What was read: name, layout, rows, and the hash of every local file."""
    bad: int
    """Rows left out with `skip_bad_rows`."""


@dataclass(frozen=True)
class Encoded:
    """A split as the trainer takes it, and what became of its rows."""

    dataset: Dataset
    """Columns `input_ids` and `labels`, or those of a pair."""
    counts: Counts
    lengths: list[int]
    """Tokens of each row, before truncation; of a pair, of its longer side."""
    kept: list[int]
    """Which of the rows these are."""


@dataclass(frozen=True)
class Encodings:
    """The rows of a run as its trainer takes them."""

    train: Dataset
    test: Dataset | None


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


def load_held_out(recipe: Recipe, kind: str) -> Rows:
    """Read and check the rows that an evaluation recipe names: its test split, or what a training run held out of one.

    Raises:
        DataError: when rows are bad, or there are none.
    """
    holds_out = recipe["test_split_size"] is not None
    read = _load_split(recipe, recipe["dataset_train_split" if holds_out else "dataset_test_split"], kind, first=True)
    rows = read.rows.select(hold_out(recipe, read.groups, len(read.rows))) if holds_out else read.rows
    if not len(rows):
        raise DataError("there are no rows to judge on", where=_named(recipe))
    return Rows(train=rows, test=None, sources=read.tally.sources, bad=read.tally.bad)


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
    chunks = [Dataset.from_dict({"row": [], "where": []}, features=_ROW)]
    groups: list[Any] = []
    while chunk := list(islice(checked, _CHUNK)):
        rows = [{"row": {**each.row, **_beside(recipe, each)}, "where": each.where} for each in chunk]
        chunks.append(Dataset.from_list(rows, features=_ROW))
        groups += [each.group(recipe["split_by"]) for each in chunk]
    return concatenate_datasets(chunks), groups


def _beside(recipe: Recipe, checked: Checked) -> dict[str, Any]:
    """All columns of a row as they are, where functions will ask for them."""
    if not recipe.get("reward_funcs") and not recipe.get("models"):
        return {}
    return {"columns": json.loads(json.dumps(dict(checked.raw), default=str))}


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


def encode_rows(rows: Dataset, renderer: Renderer, recipe: Recipe, *, packing: bool = False) -> Encoded:
    """Turn rows into tokens and labels, without those that carry no loss, and foretell what the trainer makes of them.

    Args:
        rows: With the columns `row` and `where`.
        renderer: For the run's tokenizer.
        recipe: For `max_length`, `truncation_mode`, `packing_strategy`, `dataset_num_proc` and `skip_bad_rows`.
        packing: Whether the trainer packs this split.

    Raises:
        DataError: when the chat template refuses rows, or none carries loss.
    """
    window = _window_of(recipe, packing=packing)

    def encode(example: dict[str, Any]) -> dict[str, Any]:
        try:
            tokens = renderer.encode(example["row"])
        except BadRow as error:
            return {"input_ids": [], "labels": [], "seen": 0, "carrying": 0, "fault": str(error)}
        seen = tokens.labels[window]
        carrying = sum(label != IGNORED_LABEL for label in seen)
        counts = {"seen": len(seen), "carrying": carrying}
        return {"input_ids": tokens.input_ids, "labels": tokens.labels, **counts, "fault": ""}

    # With a fingerprint given, none is computed, which would pickle the whole tokenizer.
    fingerprint = secrets.token_hex(8)
    mapped = rows.map(
        encode,
        remove_columns=["row"],
        num_proc=recipe["dataset_num_proc"],
        new_fingerprint=fingerprint,
        features=_TOKENS,
    )
    bad = refuse_faults(mapped, recipe)
    carrying = mapped["carrying"]
    kept = [index for index, count in enumerate(carrying) if count]
    if not kept:
        raise DataError(
            f"no row carries loss within max_length {recipe['max_length']}: prompts fill it",
            where=recipe.where("max_length"),
            hint="raise `max_length`",
        )
    used = mapped.select(kept) if len(kept) < len(mapped) else mapped
    dataset = used.select_columns(["input_ids", "labels"])
    lengths = [len(ids) for ids in dataset.with_format("arrow")["input_ids"]]
    return Encoded(dataset, _count(used, lengths, recipe, packing=packing, read=len(rows), bad=bad), lengths, kept)


def _window_of(recipe: Recipe, *, packing: bool) -> slice:
    """The part of a row that is trained on."""
    max_length = recipe["max_length"]
    if max_length is None or _cuts_nothing(recipe, packing=packing):
        return slice(None)
    return slice(-max_length, None) if recipe["truncation_mode"] == "keep_end" and not packing else slice(max_length)


def _cuts_nothing(recipe: Recipe, *, packing: bool) -> bool:
    """Whether what is longer than a pack goes on in the next one."""
    return packing and recipe["packing_strategy"] in ("bfd_split", "wrapped")


def refuse_faults(mapped: Dataset, recipe: Recipe) -> int:
    """How many rows the chat template refuses; an error where they are not to be left out."""
    tally = Tally()
    for where, fault in zip(mapped["where"], mapped["fault"], strict=True):
        if fault:
            tally.add_bad(where, fault)
    if tally.bad and not recipe["skip_bad_rows"]:
        raise tally.error()
    return tally.bad


def _count(
    used: Dataset, lengths: list[int], recipe: Recipe, *, packing: bool, read: int, bad: int
) -> Counts:  # fmt: skip
    max_length = recipe["max_length"]
    tokens, loss_tokens = sum(used["seen"]), sum(used["carrying"])
    examples, longest = len(used), max(used["seen"])
    cuts = max_length is not None and not _cuts_nothing(recipe, packing=packing)
    if packing:
        packed = pack_dataset(used.select_columns(["input_ids", "labels"]), max_length, recipe["packing_strategy"])
        examples, longest = len(packed), max_length
    return Counts(
        read=read,
        bad=bad,
        masked=read - bad - len(used),
        used=len(used),
        truncated=sum(length > max_length for length in lengths) if cuts else 0,
        examples=examples,
        tokens=tokens,
        loss_tokens=loss_tokens,
        longest=longest,
    )


def sequences_of(example: Mapping[str, Any]) -> list[Tokens]:
    """The sequences of an example of any trainer, with labels where the loss is; a reward model's is at the end."""
    if "input_ids" in example:
        return [Tokens(example["input_ids"], example["labels"])]
    if "chosen_ids" not in example:
        return [Tokens(example["prompt_ids"], [IGNORED_LABEL] * len(example["prompt_ids"]))]
    prompt = example.get("prompt_ids")
    sequences = []
    for side in (example["chosen_ids"], example["rejected_ids"]):
        before = [*prompt] if prompt is not None else side[:-1]
        behind = side if prompt is not None else side[-1:]
        sequences.append(Tokens([*before, *behind], [IGNORED_LABEL] * len(before) + [*behind]))
    return sequences


def hash_tokens(dataset: Dataset) -> str:
    """A hash of every column: lists of tokens, one number a row, or what stands beside a prompt."""
    digest = hashlib.sha256()
    columns = sorted(dataset.column_names)
    for batch in dataset.with_format("arrow").iter(_CHUNK):
        for column in columns:
            values = batch.column(column).combine_chunks()
            if not isinstance(values, pa.ListArray) and not pa.types.is_primitive(values.type):
                digest.update(json.dumps(values.to_pylist(), sort_keys=True, default=str).encode())
                continue
            if pa.types.is_list(values.type):
                digest.update(np.diff(values.offsets.to_numpy()).astype(np.int64).tobytes())
                values = values.flatten()
            digest.update(values.to_numpy().astype(np.float64 if pa.types.is_floating(values.type) else np.int64))
    return digest.hexdigest()
