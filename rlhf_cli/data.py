"""Files or Hub, through rows, into datasets."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from trl import pack_dataset

from rlhf_cli.errors import DataError, EnvironmentFault, Problem
from rlhf_cli.files import BadLine, Raw, find_files, is_data_file, read_rows
from rlhf_cli.plan import Counts
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import IGNORED_LABEL, Renderer
from rlhf_cli.rows import BadRow, Row, find_layout
from rlhf_cli.run_dir import file_hash

SHOWN_PROBLEMS = 10
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
    problems: list[Problem]
    """Why, for the first few."""


@dataclass(frozen=True)
class Encoded:
    """A split as the trainer takes it, and what became of its rows."""

    dataset: Dataset
    """Columns `input_ids` and `labels`."""
    counts: Counts
    lengths: list[int]
    """Tokens of each row, before truncation."""


# --- rows -------------------------------------------------------------------------------------------------------


def load_rows(recipe: Recipe) -> Rows:
    """Read and check every row the recipe names.

    Raises:
        DataError: when rows are bad (named by file and line) or a split is missing.
        EnvironmentFault: when the hub cannot be reached.
    """
    train = _load_split(recipe, recipe["dataset_train_split"], first=True)
    wants_test = recipe["eval_strategy"] != "no" and recipe["test_split_size"] is None
    test = _load_split(recipe, recipe["dataset_test_split"], first=False) if wants_test else None
    rows, held_out = train.rows, test.rows if test else None
    if recipe["test_split_size"] is not None:
        rows, held_out = _hold_out(recipe, train)
    for split, name in ((rows, "train"), (held_out, "test")):
        if split is not None and not len(split):
            raise DataError(f"no rows are left in the {name} split", where=_named(recipe))
    parts = [part for part in (train, test) if part is not None]
    return Rows(
        train=rows,
        test=held_out,
        sources=[source for part in parts for source in part.sources],
        bad=sum(part.bad for part in parts),
        problems=[problem for part in parts for problem in part.problems],
    )


@dataclass
class _Split:
    rows: Dataset
    groups: list[Any]
    """Of each row, the value of the `split_by` column."""
    sources: list[dict[str, Any]]
    bad: int
    problems: list[Problem]


def _load_split(recipe: Recipe, split: str, *, first: bool) -> _Split:
    """Read one split of all the datasets that the recipe names, and mix them."""
    entries = recipe["datasets"] or [{"path": recipe["dataset_name"], "name": recipe["dataset_config"]}]
    parts = []
    for entry in entries:
        wanted = entry.get("split", split) if recipe["datasets"] and first else split
        parts.append(_check_rows(recipe, entry, _raw_rows(entry, wanted, first=first)))
    problems = [problem for part in parts for problem in part.problems]
    bad = sum(part.bad for part in parts)
    if bad and not recipe["skip_bad_rows"]:
        more = f", of which the first {len(problems)} are shown" if bad > len(problems) else ""
        rows, them = ("rows", "them") if bad > 1 else ("row", "it")
        hint = f"{bad} bad {rows}{more}: mend {them}, or leave {them} out with `skip_bad_rows: true`"
        raise DataError(f"{bad} bad {rows}", problems=problems, hint=hint)
    datasets = _take_fractions([part.rows for part in parts], [entry.get("fraction") for entry in entries], recipe)
    groups = [group for part, rows in zip(parts, datasets, strict=True) for group in part.groups[: len(rows)]]
    return _Split(
        concatenate_datasets(datasets),
        groups,
        [source for part in parts for source in part.sources],
        bad,
        problems,
    )


def _raw_rows(entry: Mapping[str, Any], split: str, *, first: bool) -> Iterator[tuple[str, Iterator[Raw]]]:
    """The sources of one dataset entry: a name each, and its raw rows."""
    path = Path(str(entry["path"])).expanduser()
    if path.exists() and not entry.get("data_files"):
        files = find_files(path / (entry.get("data_dir") or ""), split, first=first)
        if not files:
            raise DataError(
                f"there is no `{split}` split",
                where=str(path),
                hint="name a folder with train and test files, or hold rows out with `test_split_size: 0.1`",
            )
        for file in files:
            yield str(file), read_rows(file)
    elif _looks_local(str(entry["path"])) and not entry.get("data_files"):
        raise DataError("no such data file", where=str(path), hint=_similar(path))
    else:
        yield f"{entry['path']}[{split}]", _hub_rows(entry, split)


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or is_data_file(Path(name))


def _similar(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    names = sorted(file.name for file in folder.iterdir() if is_data_file(file))
    return f"data files in {folder}/: {', '.join(names[:8])}" if names else None


def _hub_rows(entry: Mapping[str, Any], split: str) -> Iterator[Raw]:
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
            f"cannot reach the Hub for the dataset `{name}`: {_first_line(error)}",
            hint="a local file works as `dataset_name` too; HF_HUB_OFFLINE=1 uses only what is in the cache",
        ) from None
    except (DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        raise DataError(f"cannot load the dataset `{name}`: {_first_line(error)}") from None
    if entry.get("columns"):
        dataset = dataset.select_columns(entry["columns"])
    for number, row in enumerate(dataset, 1):
        yield f"{name}[{split}]:{number}", row


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_rows(recipe: Recipe, entry: Mapping[str, Any], sources: Iterator[tuple[str, Iterator[Raw]]]) -> _Split:
    """Read every raw row through the layout of its source; collect the bad ones."""
    split = _Split(Dataset.from_dict({"row": []}, features=_ROW), [], [], 0, [])
    chunks = [split.rows]
    for name, raws in sources:
        source: dict[str, Any] = {"name": name, "layout": None, "rows": 0}
        if Path(name).is_file():
            source["sha256"] = file_hash(Path(name))
        split.sources.append(source)
        checked = _checked(recipe, entry, name, raws, split)
        while chunk := list(islice(checked, _CHUNK)):
            chunks.append(Dataset.from_list(chunk, features=_ROW))
    split.rows = concatenate_datasets(chunks)
    return split


def _checked(
    recipe: Recipe, entry: Mapping[str, Any], name: str, raws: Iterable[Raw], split: _Split
) -> Iterator[dict[str, Row]]:
    layout = None
    source = split.sources[-1]
    for where, raw in raws:
        try:
            if isinstance(raw, BadLine):
                raise BadRow(str(raw))
            row = {key: raw[key] for key in entry["columns"] if key in raw} if entry.get("columns") else raw
            layout = layout or find_layout(row, where=name, text_column=recipe["dataset_text_field"] or "text")
            source["layout"] = layout.name
            missing = sorted(layout.columns - row.keys())
            if missing:
                raise BadRow(
                    f"the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} of the first row is missing"
                )
            read = layout.read(row)
        except BadRow as error:
            split.bad += 1
            if len(split.problems) < SHOWN_PROBLEMS:
                file, _, line = where.rpartition(":")
                split.problems.append(Problem(str(error), file, int(line)))
            continue
        split.groups.append(raw.get(recipe["split_by"]) if recipe["split_by"] else None)
        source["rows"] += 1
        yield {"row": read}


def _take_fractions(datasets: list[Dataset], fractions: list[float | None], recipe: Recipe) -> list[Dataset]:
    """Cut a mixture to its fractions as TRL does: as large as it can be without taking a row twice."""
    given = [fraction for fraction in fractions if fraction is not None]
    if not given:
        return datasets
    if len(given) < len(datasets):
        raise DataError("`fraction` must be given for all datasets or for none", where=recipe.where("datasets"))
    shares = [fraction / sum(given) for fraction in given]
    total = min(len(dataset) / share for dataset, share in zip(datasets, shares, strict=True))
    return [
        dataset.select(range(min(len(dataset), round(share * total))))
        for dataset, share in zip(datasets, shares, strict=True)
    ]


def _hold_out(recipe: Recipe, split: _Split) -> tuple[Dataset, Dataset]:
    """Hold test rows out of the training rows, at random by the seed; with `split_by`, whole groups."""
    size, seed = recipe["test_split_size"], recipe["seed"]
    groups: list[Any] = split.groups if recipe["split_by"] else list(range(len(split.rows)))
    if recipe["split_by"] and any(group is None for group in groups):
        raise DataError(f"some rows have no column `{recipe['split_by']}` to split by", where=recipe.where("split_by"))
    names = list(dict.fromkeys(groups))
    if size >= 1 and size >= len(names):
        raise DataError(f"`test_split_size: {size}` leaves nothing to train on", where=recipe.where("test_split_size"))
    if len(names) < 2:
        raise DataError("there is only one group of rows, so none can be held out", where=_named(recipe))
    parts = Dataset.from_dict({"group": range(len(names))}).train_test_split(
        test_size=int(size) if size >= 1 else size, seed=seed
    )
    held_out = {names[number] for number in parts["test"]["group"]}
    test = [index for index, group in enumerate(groups) if group in held_out]
    train = [index for index, group in enumerate(groups) if group not in held_out]
    return split.rows.select(train), split.rows.select(test)


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
