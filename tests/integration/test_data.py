"""Datasets by every way a recipe can name them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data import load_rows
from rlhf_cli.errors import DataError
from rlhf_cli.recipe import read_recipe


def write_rows(path: Path, name: str, count: int, **extra: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{name} {n}?", "completion": f"{name} {n}", **extra, "group": n // 4} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def run(**keys: Any) -> Any:
        path = tmp_path / "recipe.yaml"
        keys = {"model_name_or_path": "m", **keys}
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
        return load_rows(read_recipe(path, method="sft"))

    return run


def prompts(rows: Any) -> list[str]:
    return [row["row"]["prompt"] for row in rows]


def test_a_mixture_takes_its_fractions_of_local_files(load: Callable[..., Any], tmp_path: Path) -> None:
    """As large as it can be without taking a row twice: 30 of `a` are 3 in 4 of 40."""
    a, b = write_rows(tmp_path / "a.jsonl", "a", 30), write_rows(tmp_path / "b/train.jsonl", "b", 50).parent
    rows = load(datasets=[{"path": str(a), "fraction": 0.3}, {"path": str(b), "fraction": 0.1}])
    assert prompts(rows.train) == [f"a {n}?" for n in range(30)] + [f"b {n}?" for n in range(10)]
    assert [source["rows"] for source in rows.sources] == [30, 50]
    everything = load(datasets=[{"path": str(a)}, {"path": str(b)}])
    assert len(everything.train) == 80


def test_columns_of_a_mixture_choose_the_layout(load: Callable[..., Any], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", "a", 3, text="story")
    rows = load(datasets=[{"path": str(path), "columns": ["text"]}])
    assert [row["row"] for row in rows.train] == [{"text": "story"}] * 3
    assert rows.sources[0]["layout"] == "text"


def test_a_fraction_for_one_is_a_fraction_for_all(load: Callable[..., Any], tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", "a", 3))
    with pytest.raises(DataError, match="`fraction` must be given for all datasets or for none"):
        load(datasets=[{"path": path, "fraction": 0.5}, {"path": path}])


def test_a_folder_gives_its_test_split(load: Callable[..., Any], tmp_path: Path) -> None:
    write_rows(tmp_path / "d/train.jsonl", "a", 8)
    write_rows(tmp_path / "d/test.jsonl", "b", 3)
    rows = load(dataset_name=str(tmp_path / "d"), eval_strategy="steps")
    assert (len(rows.train), prompts(rows.test)) == (8, ["b 0?", "b 1?", "b 2?"])
    assert load(dataset_name=str(tmp_path / "d")).test is None


@pytest.mark.parametrize(("size", "held_out"), [(0.25, 5), (7, 7)])
def test_rows_are_held_out_by_the_seed(size: float, held_out: int, load: Callable[..., Any], tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", "a", 20))
    rows = load(dataset_name=path, test_split_size=size)
    assert len(rows.test) == held_out
    assert sorted(prompts(rows.train) + prompts(rows.test)) == sorted(f"a {n}?" for n in range(20))
    assert prompts(load(dataset_name=path, test_split_size=size).test) == prompts(rows.test)
    assert prompts(load(dataset_name=path, test_split_size=size, seed=1).test) != prompts(rows.test)


def test_groups_stay_together(load: Callable[..., Any], tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", "a", 20))
    rows = load(dataset_name=path, test_split_size=0.4, split_by="group")

    def groups(split: Any) -> set[int]:
        return {int(prompt.split()[1].rstrip("?")) // 4 for prompt in prompts(split)}

    assert len(rows.test) == 8
    assert groups(rows.train) | groups(rows.test) == set(range(5))
    assert not groups(rows.train) & groups(rows.test)


@pytest.mark.parametrize("size", [20, 30])
def test_holding_out_everything_is_refused(size: int, load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leaves nothing to train on"):
        load(dataset_name=str(write_rows(tmp_path / "a.jsonl", "a", 20)), test_split_size=size)


def test_rows_with_tools_keep_them(rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Arguments of tool calls differ in shape from row to row, which a columnar table would not bear."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {key: value}}}]},
                {"role": "tool", "content": "sun"},
                {"role": "assistant", "content": "Sunny."},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {key: {"type": "string"}}}}],
        }
        for key, value in (("city", "Rome"), ("days", 3), ("where", {"lat": 1.5}))
    ]
    (tmp_path / "tools.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = rlhf("sft", str(write_recipe(dataset_name="tools.jsonl", max_steps=1)))
    assert outcome.code == 0, outcome.err
