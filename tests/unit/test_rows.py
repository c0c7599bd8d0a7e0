"""Files into raw rows, each with its line; and files that are not what they are called."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.files import BadLine, find_files, read_rows

ROWS = [{"prompt": "2+2?", "completion": "4"}, {"prompt": "ünï — 7", "completion": "a\nb"}]


def write(path: Path) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    name = path.name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name.endswith(".csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False))
    elif name.startswith("bom"):
        path.write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    else:
        path.write_text("\n" + lines)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "bom.jsonl"])
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    assert [row for _, row in read_rows(path)] == ROWS
    assert all(where.startswith(f"{path}:") for where, _ in read_rows(path))


def test_lines_are_those_an_editor_shows(tmp_path: Path) -> None:
    array = tmp_path / "a.json"
    array.write_text('[\n  {"n": 1},\n  {\n    "n": 2\n  },\n  {"n": 3}\n]\n')
    assert [where.rpartition(":")[2] for where, _ in read_rows(array)] == ["2", "3", "6"]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"n": 1}\n\n{"n": 2}\n{\n')
    read = list(read_rows(lines))
    assert [where.rpartition(":")[2] for where, _ in read] == ["1", "3", "4"]
    assert isinstance(read[2][1], BadLine)


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation.parquet"],
         ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["validation.parquet"]),
        (["train/a.csv", "train/b.csv", "test/a.csv"], ["train/a.csv", "train/b.csv"], ["test/a.csv"]),
        (["a.jsonl", "b.jsonl", "README.md", "dataset_info.json"], ["a.jsonl", "b.jsonl"], []),
        (["train-0.jsonl", "train_sft-0.jsonl", "test.jsonl"], ["train-0.jsonl"], ["test.jsonl"]),
        (["train.jsonl", "test.jsonl", "run/rlhf/run.json", "run/all_results.json"], ["train.jsonl"], ["test.jsonl"]),
    ],
)  # fmt: skip
def test_folders_name_their_splits(files: list[str], train: list[str], test: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = [find_files(tmp_path, split, first=split == "train") for split in ("train", "test")[: 1 + bool(test)]]
    assert [[str(file.relative_to(tmp_path)) for file in part] for part in found] == [train, test][: len(found)]
    if not test:
        with pytest.raises(DataError, match="there is no `test` split"):
            find_files(tmp_path, "test", first=False)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", b"prompt,completion\n2+2?,4\n", "this is not JSON: it starts with 'prompt,completion'"),
        ("a.csv", b'{"prompt": "2+2?", "completion": "4"}\n', "this is JSON, not CSV"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "this is a gzip"),
        ("a.jsonl", "{}".encode("utf-16"), "this is a UTF-16 file"),
        ("a.jsonl", b"PAR1", "this is a Parquet"),
        ("a.csv", b"prompt,completion\na,b\ncaf\xe9,c\n", "not UTF-8 text: byte 0xe9 at column 4"),
        ("a.json", b'[{"a": "caf\xe9"}]', "not UTF-8 text: byte 0xe9 at column 12"),
        ("a.jsonl.gz", b"no gzip", "cannot read the file: Not a gzipped file"),
        ("a.parquet", b"PAR1 and no more", "not a Parquet file"),
        ("a.jsonl", b"\n\n", "the file holds no rows"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_is_called(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=what.replace("?", r"\?").replace("(", r"\(")):
        list(read_rows(tmp_path / name))


def test_a_line_in_another_encoding_spoils_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"n": 1}\n{"n": "caf\xe9"}\n{"n": "\x00"}\n' + b'{"n": "' + b"x" * 10_000_000 + b'"}\n' + b"[" * 99999
    )
    read = list(read_rows(path))
    assert [where.rpartition(":")[2] for where, _ in read] == ["1", "2", "3", "4", "5"]
    assert [isinstance(row, BadLine) for _, row in read] == [False, True, True, False, True]
    assert "byte 0xe9 at column 11" in str(read[1][1])
    assert "Invalid control character" in str(read[2][1])


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match="there is no `tain` split") as error:
        find_files(tmp_path, "tain", first=True)
    assert "there is train;" in str(error.value.hint)


def test_a_folder_of_save_to_disk_is_named_as_one(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="a folder of `save_to_disk`"):
        find_files(tmp_path, "train", first=True)


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,completion\n{'x' * 300_000},b\n")
    assert [len(row["prompt"]) for _, row in read_rows(path)] == [300_000]
