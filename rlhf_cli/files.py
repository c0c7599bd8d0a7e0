"""Data files into raw rows, each with the file and line it came from."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rlhf_cli.errors import DataError

READABLE = (".jsonl", ".json", ".csv", ".parquet")
_SPLIT_NAMES = {
    "test": ("test", "validation", "valid", "eval", "dev"),
    "validation": ("validation", "valid", "dev"),
}


class BadLine(ValueError):
    """A line that holds no row; the text says why."""


Raw = tuple[str, Mapping[str, Any] | BadLine]
"""Where a row stands (`file:line`), and the row or the reason why there is none."""


def is_data_file(path: Path) -> bool:
    """Whether the name ends like a file that can be read here."""
    return _suffix(path) in READABLE


def find_files(path: Path, split: str, *, first: bool) -> list[Path]:
    """The files of a split: of a file itself, or below a folder.

    Args:
        path: A file or a folder.
        split: Its name, which the name of a file or of its folder starts with.
        first: Whether this is the training split: it has all files of a folder that names no splits.

    Raises:
        DataError: when the folder holds no data.
    """
    if path.is_file():
        if not is_data_file(path):
            raise DataError(
                f"cannot read `{path.suffix or path.name}` files",
                where=str(path),
                hint=f"one of {', '.join(READABLE)}",
            )
        return [path] if first else []
    below = sorted(file for file in path.rglob("*") if file.is_file() and is_data_file(file))
    if not below:
        raise DataError("the folder holds no data files", where=str(path), hint=f"one of {', '.join(READABLE)}")
    named = [file for file in below if _belongs(file, path, split)]
    splits_are_named = any(_belongs(file, path, name) for file in below for name in ("train", "test", "validation"))
    return named if named or splits_are_named or not first else below


def _belongs(file: Path, folder: Path, split: str) -> bool:
    parts = [part.split(".")[0].lower() for part in file.relative_to(folder).parts]
    wanted = _SPLIT_NAMES.get(split, (split,))
    return any(part == name or part.startswith((f"{name}-", f"{name}_")) for part in parts for name in wanted)


def read_rows(path: Path) -> Iterator[Raw]:
    """Every row of a file, in order, bad ones included.

    Raises:
        DataError: when the file as a whole cannot be read or is empty.
    """
    readers = {".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    count = 0
    try:
        for raw in readers[_suffix(path)](path):
            count += 1
            yield raw
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read the file: {error}", where=str(path)) from None
    if count == 0:
        raise DataError("the file holds no rows", where=str(path))


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _open_text(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_json(path: Path) -> Iterator[Raw]:
    """JSON lines, or one JSON array: both are found under either name."""
    with _open_text(path) as file:
        start = ""
        while not start.strip() and (character := file.read(1)):
            start += character
        if start.strip() == "[":
            yield from _read_array(path, start + file.read())
        else:
            yield from _read_lines(path, start, file)


def _read_lines(path: Path, start: str, file: IO[str]) -> Iterator[Raw]:
    line_number = 1 + start.count("\n")
    first_line = start.rsplit("\n", 1)[-1] + file.readline()
    yield from _read_line(path, line_number, first_line)
    for number, line in enumerate(file, line_number + 1):
        yield from _read_line(path, number, line)


def _read_line(path: Path, number: int, line: str) -> Iterator[Raw]:
    line = line.rstrip("\r\n")
    if not line.strip():
        return
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(line) or error.msg.startswith("Unterminated")
        ending = ", the line ends in the middle of a value" if at_end else ""
        yield where, BadLine(f"not JSON at column {error.colno}: {error.msg}{ending}")
        return
    yield (
        where,
        row if isinstance(row, dict) else BadLine(f"a row is a JSON object, this is {json.dumps(row)[:40]}"),
    )


def _read_array(path: Path, text: str) -> Iterator[Raw]:
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    line, counted = 1, 0
    while True:
        while position < len(text) and text[position] in ", \t\r\n":
            position += 1
        line += text.count("\n", counted, position)
        counted = position
        where = f"{path}:{line}"
        if position >= len(text):
            yield where, BadLine("not JSON: the file ends before the closing `]`")
            return
        if text[position] == "]":
            return
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield f"{path}:{error.lineno}", BadLine(f"not JSON at column {error.colno}: {error.msg}")
            return
        yield where, row if isinstance(row, dict) else BadLine("a row is a JSON object, this is none")


def _read_csv(path: Path) -> Iterator[Raw]:
    with _open_text(path) as file:
        reader = csv.DictReader(file, restkey="\0more", strict=True)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if "\0more" in row:
                    yield (
                        where,
                        BadLine(f"more cells than the {len(reader.fieldnames or ())} columns of the first line"),
                    )
                elif None in row.values():
                    yield (
                        where,
                        BadLine(f"fewer cells than the {len(reader.fieldnames or ())} columns of the first line"),
                    )
                else:
                    yield where, row
        except csv.Error as error:
            yield f"{path}:{reader.line_num}", BadLine(f"not CSV: {error}")


def _read_parquet(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"not a Parquet file: {str(error).splitlines()[0]}", where=str(path)) from None
