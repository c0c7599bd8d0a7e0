"""Files into rows, and rows into the four shapes."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.files import BadLine, find_files, read_rows
from rlhf_cli.rows import BadRow, find_layout, split_transcript

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
        (["a.jsonl", "b.jsonl", "README.md"], ["a.jsonl", "b.jsonl"], []),
    ],
)  # fmt: skip
def test_folders_name_their_splits(files: list[str], train: list[str], test: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [find_files(tmp_path, split, first=split == "train") for split in ("train", "test")]
    assert [[str(file.relative_to(tmp_path)) for file in part] for part in found] == [train, test]


USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    ("row", "layout", "read"),
    [
        ({"text": "a"}, "text", {"text": "a"}),
        ({"messages": [USER, ANSWER], "text": "x"}, "messages", {"messages": [USER, ANSWER]}),
        ({"prompt": "a", "completion": "b", "id": 1}, "prompt/completion", {"prompt": "a", "completion": "b"}),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt/completion", {"prompt": [USER], "completion": [ANSWER]}),
        ({"instruction": "Add", "input": "2+2", "output": "4"}, "Alpaca",
         {"prompt": [{"role": "user", "content": "Add\n\n2+2"}], "completion": [ANSWER]}),
        ({"instruction": "2+2?", "input": "", "output": "4"}, "Alpaca", {"prompt": [USER], "completion": [ANSWER]}),
        ({"messages": [{**USER, "name": None}, {**ANSWER, "tool_calls": None}], "tools": None}, "messages",
         {"messages": [USER, ANSWER]}),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], "tools": [{}]},
         "messages", {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}],
                      "tools": [{}]}),
    ],
)  # fmt: skip
def test_layouts(row: dict[str, Any], layout: str, read: dict[str, Any]) -> None:
    found = find_layout(row, where="file")
    assert found.name == layout
    assert found.read(row) == read


def test_dolly_is_alpaca_under_other_names() -> None:
    row = {"instruction": "Add", "context": "2+2", "response": "4", "category": "math"}
    layout = find_layout(row, where="file")
    assert layout.name == "Dolly"
    assert layout.read(row)["prompt"] == [{"role": "user", "content": "Add\n\n2+2"}]


def test_sharegpt_turns_become_messages() -> None:
    turns = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    row = {"id": "x", "system": "Add.", "conversations": turns}
    messages = find_layout(row, where="file").read(row)["messages"]
    assert messages == [{"role": "system", "content": "Add."}, USER, ANSWER]
    with pytest.raises(BadRow, match=r"`conversations\[0\]` is from 'alien'"):
        find_layout(row, where="file").read({"conversations": [{"from": "alien", "value": "x"}]})


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant: b", ["a", "b"]),
        ("\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant: e", ["a\n\nb", "c", "d", "e"]),
        ('Human: a\n\nAssistant: They say "Human: hi" and\nHuman: bye', ["a", 'They say "Human: hi" and\nHuman: bye']),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", ["a\n\nHuman: b", "c"]),
    ],
)
def test_transcripts_are_split_where_a_turn_really_starts(text: str, turns: list[str]) -> None:
    messages = split_transcript(text)
    assert [message["content"] for message in messages] == turns
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"][: len(turns)]


def test_a_transcript_without_turns_is_bad() -> None:
    row = {"chosen": "Just a text. Assistant: no", "rejected": "x"}
    with pytest.raises(BadRow, match="does not start with"):
        find_layout(row, where="file").read(row)


def test_a_tree_gives_the_conversation_along_its_best_replies() -> None:
    def node(text: str, role: str, rank: int | None = None, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}

    best = node("4", "assistant", 0, node("And 3+3?", "prompter", None, node("6", "assistant")), node("x", "prompter"))
    gone = node("none", "assistant", -1, deleted=True)
    tree = {"message_tree_id": "t", "prompt": node("2+2?", "prompter", None, node("5", "assistant", 1), best, gone)}
    row = find_layout(tree, where="file").read(tree)
    assert [message["content"] for message in row["messages"]] == ["2+2?", "4", "And 3+3?", "6"]
    unanswered = {"message_tree_id": "t", "prompt": node("2+2?", "prompter")}
    with pytest.raises(BadRow, match="no assistant turn"):
        find_layout(unanswered, where="file").read(unanswered)


def test_the_text_column_can_have_another_name() -> None:
    layout = find_layout(["story"], where="file", text_column="story")
    assert layout.read({"story": "Once"}) == {"text": "Once"}
    with pytest.raises(DataError, match="no known row layout"):
        find_layout(["story"], where="file")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " "}, "`text` is empty"),
        ({"text": 7}, "`text` must be text, got the number 7"),
        ({"prompt": "a", "completion": [ANSWER]}, "must both be text or both be lists"),
        ({"prompt": "a", "completion": None}, "must both be text or both be lists"),
        ({"messages": []}, "must be a list of messages, got an empty list"),
        ({"messages": "hi"}, "must be a list of messages, got text"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [USER, {"role": "bot", "content": "4"}]}, "has the role 'bot'"),
        ({"messages": [USER, {"role": "assistant"}]}, r"`messages\[1\]` has no text as content, got nothing"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, r"`messages\[1\]` is empty"),
        ({"messages": [USER, "4"]}, r"`messages\[1\]` must be a mapping"),
        ({"instruction": "Add", "input": 4, "output": "4"}, "`input` must be text"),
        ({"instruction": "", "input": "", "output": "4"}, "`instruction` is empty"),
    ],
)
def test_bad_rows_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        find_layout(row, where="file").read(row)
