"""Data files into raw rows, each with the file and line it came from."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
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
        if not first:
            raise _no_split(path, split, [])
        return [path]
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        raise DataError(
            "this is a folder of `save_to_disk`, which cannot be read here",
            where=str(path),
            hint="write it with `Dataset.to_json` or `Dataset.to_parquet`",
        )
    below = sorted(file for file in path.rglob("*") if file.is_file() and is_data_file(file) and _is_data(file, path))
    if not below:
        raise DataError("the folder holds no data files", where=str(path), hint=f"one of {', '.join(READABLE)}")
    named = [file for file in below if _belongs(file, path, split)]
    splits = [name for name in ("train", "validation", "test") if any(_belongs(file, path, name) for file in below)]
    if not named and first and not splits:
        return below
    if not named:
        raise _no_split(path, split, splits)
    return named


def _no_split(path: Path, split: str, there: list[str]) -> DataError:
    has = f"there is {', '.join(there)}; " if there else ""
    return DataError(
        f"there is no `{split}` split",
        where=str(path),
        hint=f"{has}name a folder with train and test files, or hold rows out with `test_split_size: 0.1`",
    )


def _is_data(file: Path, folder: Path) -> bool:
    """Whether a file holds rows: not the description of a dataset, nor anything of a run."""
    if file.name in _METADATA:
        return False
    inner = [parent for parent in file.parents if parent.is_relative_to(folder)]
    return not any((parent / "rlhf" / "run.json").exists() for parent in inner)


_METADATA = ("dataset_info.json", "dataset_infos.json", "metadata.json")


def _belongs(file: Path, folder: Path, split: str) -> bool:
    parts = [part.split(".")[0].lower() for part in file.relative_to(folder).parts]
    wanted = _SPLIT_NAMES.get(split, (split,))
    # train-00000-of-00002 and train_1 are parts of train; train_sft is a split of its own.
    return any(re.fullmatch(rf"{re.escape(name)}([-_.]\d.*)?", part) for part in parts for name in wanted)


def read_rows(path: Path) -> Iterator[Raw]:
    """Every row of a file, in order, bad ones included.

    Raises:
        DataError: when the file as a whole cannot be read or is empty.
    """
    readers = {".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    suffix = _suffix(path)
    count = 0
    try:
        if suffix != ".parquet":
            _refuse_other_format(path, suffix)
        for raw in readers[suffix](path):
            count += 1
            yield raw
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read the file: {error}", where=str(path)) from None
    if count == 0:
        raise DataError("the file holds no rows", where=str(path))


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _refuse_other_format(path: Path, suffix: str) -> None:
    """Refuse a file that is named as what it is not, by the way it starts."""
    with _open(path) as file:
        start = file.read(4096)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"this is a {name} file", where=str(path), hint=f"name it like one, or convert it: {name}")
    first = start.removeprefix(codecs.BOM_UTF8).lstrip().split(b"\n")[0].decode("utf-8", errors="replace")
    if suffix == ".csv" and first.startswith(('{"', "[{")):
        raise DataError("this is JSON, not CSV", where=str(path), hint="name the file .jsonl")
    if suffix in (".jsonl", ".json") and first and first[0] not in '{["-0123456789tfn':
        hint = "a table with commas is named .csv" if "," in first else None
        raise DataError(f"this is not JSON: it starts with {first[:40]!r}", where=str(path), hint=hint)


_MAGIC = {
    b"\x1f\x8b": "gzip (.gz)", b"PAR1": "Parquet (.parquet)", b"PK\x03\x04": "zip",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
"""How files start that are no UTF-8 text."""


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """Name the first line that is not UTF-8; the decoder itself only knows its place in a buffer."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as at:
                byte = f"byte {line[at.start]:#04x} at column {at.start + 1}"
                return DataError(f"not UTF-8 text: {byte}", where=f"{path}:{number}", hint=_ENCODING_HINT)
    return DataError(f"not UTF-8 text: {error.reason}", where=str(path), hint=_ENCODING_HINT)


_ENCODING_HINT = "convert it, such as `iconv -f latin1 -t utf-8 OLD > NEW`"


def _open_text(path: Path) -> IO[str]:
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="")


def _read_json(path: Path) -> Iterator[Raw]:
    """JSON lines, or one JSON array: both are found under either name."""
    with _open(path) as file:
        start = file.read(3).removeprefix(codecs.BOM_UTF8)
        while not start.strip() and (byte := file.read(1)):
            start += byte
        if start.strip().startswith(b"["):
            yield from _read_array(path, (start + file.read()).decode("utf-8"))
        else:
            yield from read_lines(path, start, file)


def read_lines(path: Path, start: bytes, file: IO[bytes]) -> Iterator[Raw]:
    """Rows of JSON lines, decoded one by one, so that a line in another encoding spoils itself alone.

    Args:
        path: What errors name.
        start: What was read of the file already.
        file: The rest of it.
    """
    begun = start.split(b"\n")
    yield from _read_line(path, len(begun), begun[-1] + file.readline())
    for number, line in enumerate(file, len(begun) + 1):
        yield from _read_line(path, number, line)


def _read_line(path: Path, number: int, line: bytes) -> Iterator[Raw]:
    line = line.rstrip(b"\r\n")
    if not line.strip():
        return
    where = f"{path}:{number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte {line[error.start]:#04x} at column {error.start + 1}"
        yield where, BadLine(f"not UTF-8 text: {byte}; {_ENCODING_HINT}")
        return
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc) or error.msg.startswith("Unterminated")
        ending = ", the line ends in the middle of a value" if at_end else ""
        yield where, BadLine(f"not JSON at column {error.colno}: {error.msg}{ending}")
        return
    except RecursionError:
        yield where, BadLine("not a row: nested too deeply")
        return
    yield where, _as_row(row)


def _as_row(value: Any) -> Mapping[str, Any] | BadLine:
    """A JSON value as a row; text by itself is a prompt."""
    if isinstance(value, str):
        return {"prompt": value}
    return value if isinstance(value, dict) else BadLine(f"a row is a JSON object, this is {json.dumps(value)[:40]}")


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
        yield where, _as_row(row)


def _read_csv(path: Path) -> Iterator[Raw]:
    with _open_text(path) as file:
        csv.field_size_limit(_LONGEST_CELL)
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


_LONGEST_CELL = 2**30
"""Characters; Python's own limit of 128 KiB is less than many a text."""


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
