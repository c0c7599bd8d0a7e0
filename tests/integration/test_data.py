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
from rlhf_cli.rows import DEMONSTRATION


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
        return load_rows(read_recipe(path, method="sft"), DEMONSTRATION)

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


def test_columns_of_a_mixture_are_mapped_for_each(load: Callable[..., Any], tmp_path: Path) -> None:
    a = tmp_path / "a.jsonl"
    a.write_text('{"frage": "2+2?", "antwort": "4"}\n{"frage": "3+3?", "antwort": "6"}\n')
    b = write_rows(tmp_path / "b.jsonl", "b", 1)
    mapped = {"path": str(a), "columns": {"prompt": "frage", "completion": "antwort"}}
    rows = load(datasets=[mapped, {"path": str(b)}])
    assert prompts(rows.train) == ["2+2?", "3+3?", "b 0?"]
    assert load(dataset_name=str(a), columns=mapped["columns"]).sources[0]["layout"] == "prompt-completion"
    with pytest.raises(DataError, match="`columns` names `fragen`, which no row has") as error:
        load(dataset_name=str(a), columns={"prompt": "fragen", "completion": "antwort"})
    assert "there are antwort, frage" in str(error.value.hint)


def test_the_text_column_can_have_another_name(load: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"story": "Once"}\n')
    rows = load(dataset_name=str(path), dataset_text_field="story")
    assert [row["row"] for row in rows.train] == [{"text": "Once"}]
    with pytest.raises(DataError, match="no known layout has the columns story"):
        load(dataset_name=str(path))


def test_the_recipe_says_how_rows_are_laid_out(load: Callable[..., Any], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", "a", 2, text="Once")
    assert load(dataset_name=str(path), layout="text").sources[0]["layout"] == "text"
    assert load(datasets=[{"path": str(path), "layout": "text"}]).sources[0]["layout"] == "text"


def test_a_slice_of_a_local_file_is_refused(load: Callable[..., Any], tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", "a", 2))
    with pytest.raises(DataError, match="takes a slice, which works with datasets of the Hub only"):
        load(dataset_name=path, dataset_train_split="train[:1]")


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


def test_rows_of_one_prompt_stay_together(load: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"{n % 5}?", "completion": f"{n}"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(dataset_name=str(path), test_split_size=0.4, split_by="prompt")
    assert not set(prompts(loaded.train)) & set(prompts(loaded.test))
    assert len(loaded.test) == 8


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


TURNS = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
NODE = {"lang": "en", "deleted": False, "rank": None}
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "dolly": [{"instruction": "Add", "context": "2+2", "response": "4", "category": "qa"}],
    "sharegpt": [{"id": "x", "conversations": TURNS}],
    "oasst-messages": [
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "2+2?", **NODE},
        {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "4", **NODE},
    ],
    "preference": [{"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}],
    "comparison": [{"info": {"post": "We quarrel."}, "summaries": [{"text": "A"}, {"text": "B"}], "choice": 1}],
    "self-instruct": [{"instruction": "Add", "instances": [{"input": "2+2", "output": "4"}]}],
    "question-answer": [{"question": "2+2?", "answer": "4"}],
}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_public_layout_trains_from_three_lines(
    layout: str, rlhf: Callable[..., Any], tiny_base: Path, tmp_path: Path
) -> None:
    rows = PUBLISHED[layout]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(f"model_name_or_path: {tiny_base}\ndataset_name: data.jsonl\nmax_steps: 2\n")
    done = rlhf("sft", "r.yaml", "--max_length", "64")
    assert done.code == 0, done.err
    assert f"data.jsonl: 1 rows as {layout}" in done.err
    assert json.loads((tmp_path / "runs/r/trainer_state.json").read_text())["global_step"] == 2
