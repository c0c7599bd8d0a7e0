"""The data a recipe names, row by row: where each stands, and how it was read."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.columns import choose_columns, unfound_columns
from rlhf_cli.errors import DataError, EnvironmentFault, Problem, RecipeError, first_line
from rlhf_cli.files import BadLine, Raw, find_files, is_data_file, read_rows
from rlhf_cli.layouts import Layout, find_layout, read_row
from rlhf_cli.recipe import Recipe
from rlhf_cli.rows import BadRow, Row, answer_text, prompt_text
from rlhf_cli.writing import file_hash

SHOWN_PROBLEMS = 10
SAMPLE = 50
"""Rows that a layout is told by."""


_VARYING = re.compile(r"\d+(?=\])|'[^']*'|(?<=column )\d+")


@dataclass(frozen=True)
class Checked:
    """A row that can be used."""

    where: str
    """`file:line`."""
    raw: Mapping[str, Any]
    row: Row

    @property
    def is_tie(self) -> bool:
        """Whether a preference compares nothing: equal answers, a margin of 0, or equal scores of its annotation."""
        if answer_text(self.row["chosen"]) == answer_text(self.row["rejected"]) or self.row.get("margin") == 0:
            return True
        scores = [self.raw.get(column) for column in ("score_chosen", "score_rejected")]
        return scores[0] is not None and scores[0] == scores[1]

    def group(self, column: str | None) -> Any:
        """What the row stays together with when rows are held out: its value in a column, or its prompt."""
        if column == "prompt":
            return prompt_text(self.row)
        value = self.raw.get(column) if column else None
        return value if isinstance(value, (str, int, float, type(None))) else json.dumps(value, sort_keys=True)


@dataclass
class Tally:
    """What was read so far, and what could not be."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    """Name, layout, rows, and the hash of a local file."""
    bad: int = 0
    ties: int = 0
    """Left out with `drop_ties`."""
    problems: list[Problem] = field(default_factory=list)
    """Why, for the first few."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why, for all, without what differs from row to row."""
    reason_places: dict[str, list[str]] = field(default_factory=dict)
    """Where, for the first few of each reason."""

    def add_bad(self, where: str, why: str) -> None:
        """Count a row that cannot be used."""
        self.bad += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            file, _, line = where.rpartition(":")
            self.problems.append(Problem(why, file, int(line)))
        reason = _VARYING.sub("…", why)
        self.reasons[reason] += 1
        places = self.reason_places.setdefault(reason, [])
        if len(places) < SHOWN_PROBLEMS:
            places.append(where)

    def error(self) -> DataError:
        """What stops a run that does not leave bad rows out."""
        more = f", of which the first {len(self.problems)} are shown" if self.bad > len(self.problems) else ""
        rows, them = ("rows", "them") if self.bad > 1 else ("row", "it")
        hint = f"{self.bad} bad {rows}{more}: mend {them}, or leave {them} out with `skip_bad_rows: true`"
        return DataError(f"{self.bad} bad {rows}", problems=self.problems, hint=hint)


def entries_of(recipe: Recipe) -> list[Mapping[str, Any]]:
    """The datasets a recipe names: the entries of its mixture, or the one."""
    one = {"path": recipe["dataset_name"], "name": recipe["dataset_config"]}
    shared = {"columns": recipe["columns"], "layout": recipe["layout"]}
    return [{**shared, **entry} for entry in recipe["datasets"] or [one]]


def read_entry(
    recipe: Recipe, entry: Mapping[str, Any], split: str, tally: Tally, *, kind: str, first: bool
) -> Iterator[Checked]:
    """Every usable row of one dataset; bad ones go to the tally.

    Args:
        recipe: For `dataset_text_field`.
        entry: One of `entries_of`.
        split: The split to read.
        tally: Gets the sources, and the rows that cannot be used.
        kind: The kind of row that is wanted.
        first: Whether this is the training split, which files without a split belong to.

    Raises:
        DataError: when a source cannot be read, or no layout fits.
        EnvironmentFault: when the hub cannot be reached.
    """
    wanted = str(entry.get("split") or split) if first else split
    text_column = recipe.get("dataset_text_field") or "text"
    for name, raws in _find(entry, wanted, first=first):
        chosen = _choose(_renamed(raws, text_column), entry.get("columns"), tally, name)
        rows = read_raws(name, chosen, tally, kind=kind, layout=entry.get("layout"))
        yield from _without_ties(rows, tally) if recipe.get("drop_ties") else rows


def _without_ties(rows: Iterator[Checked], tally: Tally) -> Iterator[Checked]:
    for checked in rows:
        if checked.is_tie:
            tally.ties += 1
            tally.sources[-1]["rows"] -= 1
        else:
            yield checked


def read_raws(
    name: str, raws: Iterator[Raw], tally: Tally, *, kind: str, layout: str | None = None
) -> Iterator[Checked]:
    """Every usable row of one source; bad ones go to the tally.

    Args:
        name: The file, for errors and for the tally.
        raws: Its raw rows.
        tally: Gets the source, and the rows that cannot be used.
        kind: The kind of row that is wanted.
        layout: How the rows are laid out, where that is not to be told.

    Raises:
        DataError: when no layout fits.
    """
    source: dict[str, Any] = {"name": name, "layout": None, "rows": 0}
    if Path(name).is_file():
        source["sha256"] = file_hash(Path(name))
    tally.sources.append(source)
    found, rows = _tell_layout(raws, kind, layout, name)
    source["layout"] = found.name if found else None
    yield from _read(found, rows, kind, tally)


def _read(layout: Layout | None, raws: Iterator[Raw], kind: str, tally: Tally) -> Iterator[Checked]:
    if layout is not None and layout.gather is not None:
        raws = layout.gather(raws)
    source = tally.sources[-1]
    for where, raw in raws:
        if isinstance(raw, BadLine) or layout is None:
            tally.add_bad(where, str(raw))
            continue
        try:
            rows = read_row(layout, raw, kind)
        except BadRow as error:
            tally.add_bad(where, str(error))
            continue
        source["rows"] += len(rows)
        for row in rows:
            yield Checked(where, raw, row)


def _renamed(raws: Iterable[Raw], text_column: str) -> Iterator[Raw]:
    """The column that `dataset_text_field` names, as `text`."""
    for where, raw in raws:
        if text_column != "text" and not isinstance(raw, BadLine) and text_column in raw:
            yield where, {**raw, "text": raw[text_column]}
        else:
            yield where, raw


def _choose(raws: Iterator[Raw], columns: Any, tally: Tally, name: str) -> Iterator[Raw]:
    """Rows under the names that the recipe gives their columns."""
    if not columns:
        yield from raws
        return
    sample, raws = _peek(raws)
    if isinstance(columns, Mapping) and sample and (unfound := unfound_columns(sample, columns)):
        seen = ", ".join(sorted({str(column) for row in sample for column in row}))
        raise DataError(f"`columns` names `{unfound[0]}`, which no row has", where=name, hint=f"there are {seen}")
    for where, raw in raws:
        try:
            yield where, raw if isinstance(raw, BadLine) else choose_columns(raw, columns)
        except BadRow as error:
            tally.add_bad(where, str(error))


def _tell_layout(raws: Iterator[Raw], kind: str, name: str | None, where: str) -> tuple[Layout | None, Iterator[Raw]]:
    sample, raws = _peek(raws)
    return (find_layout(sample, kind, where=where, name=name) if sample else None), raws


def _peek(raws: Iterator[Raw]) -> tuple[list[Mapping[str, Any]], Iterator[Raw]]:
    """The first rows, and all of them."""
    first = list(islice(raws, SAMPLE))
    return [raw for _, raw in first if not isinstance(raw, BadLine)], chain(first, raws)


def hold_out(recipe: Recipe, groups: Sequence[Any], count: int) -> list[int]:
    """Which rows `test_split_size` holds out, at random by the seed; with `split_by`, whole groups.

    Args:
        recipe: For `test_split_size`, `split_by` and `seed`.
        groups: Of each row, what it stays together with.
        count: How many rows there are.

    Raises:
        DataError: when nothing would be left on one side, or rows lack the column.
    """
    size = recipe["test_split_size"]
    where = recipe.where("test_split_size")
    members: dict[Any, list[int]] = {}
    for index, group in enumerate(groups if recipe["split_by"] else range(count)):
        members.setdefault(group, []).append(index)
    if recipe["split_by"] and None in members:
        raise DataError(f"some rows have no column `{recipe['split_by']}` to split by", where=recipe.where("split_by"))
    if len(members) < 2:
        raise DataError("there is only one group of rows, so none can be held out", where=where)
    wanted = int(size) if size >= 1 else math.ceil(size * len(members))
    if wanted >= len(members):
        raise DataError(f"`test_split_size: {size}` leaves nothing to train on", where=where)
    order = np.random.default_rng(recipe["seed"]).permutation(len(members))
    names = list(members)
    return sorted(index for number in order[:wanted] for index in members[names[number]])


# --- where rows come from ---------------------------------------------------------------------------------------


def _find(entry: Mapping[str, Any], split: str, *, first: bool) -> Iterator[tuple[str, Iterator[Raw]]]:
    """The sources of one dataset: a name each, and its raw rows."""
    path = Path(os.path.expanduser(str(entry["path"])))
    if path.exists() and not entry.get("data_files"):
        _refuse_unread(entry, path)
        if "[" in split:
            raise DataError(f"`{split}` takes a slice, which works with datasets of the Hub only", where=str(path))
        for file in find_files(path / (entry.get("data_dir") or ""), split, first=first):
            yield str(file), read_rows(file)
    elif _looks_local(str(entry["path"])) and not entry.get("data_files"):
        raise DataError("no such data file", where=str(path), hint=_similar(path))
    else:
        yield f"{entry['path']}[{split}]", _hub_rows(entry, split)


def _refuse_unread(entry: Mapping[str, Any], path: Path) -> None:
    """Keys of an entry that say nothing about local files."""
    if entry.get("name"):
        what = f"`{entry['name']}` names a configuration (`dataset_config`, or `name`), and local files have none"
        raise RecipeError(what, where=str(path), hint="remove it; `data_dir` of an entry names a folder within")
    if entry.get("data_dir") and path.is_file():
        raise RecipeError(f"`data_dir: {entry['data_dir']}` is for folders, and this is a file", where=str(path))


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or is_data_file(Path(name))


def _similar(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    names = sorted(file.name for file in folder.iterdir() if is_data_file(file))
    return f"data files in {folder}/: {', '.join(names[:8])}" if names else None


def _hub_rows(entry: Mapping[str, Any], split: str) -> Iterator[Raw]:
    """Rows of a dataset of the Hub; a loading script is never run, since `datasets` knows none any more."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    name = str(entry["path"])
    try:
        dataset = load_dataset(
            name,
            name=entry.get("name"),
            data_dir=entry.get("data_dir"),
            data_files=entry.get("data_files"),
            split=split,
        )
    except (OfflineModeIsEnabled, ConnectionError, HfHubHTTPError) as error:
        raise EnvironmentFault(
            f"cannot reach the Hub for the dataset `{name}`: {first_line(error)}",
            hint="a local file works as `dataset_name` too; HF_HUB_OFFLINE=1 uses only what is in the cache",
        ) from None
    except (DatasetNotFoundError, ValueError, FileNotFoundError, RuntimeError) as error:
        raise DataError(f"cannot load the dataset `{name}`: {first_line(error)}") from None
    for number, row in enumerate(dataset, 1):
        yield f"{name}[{split}]:{number}", row
