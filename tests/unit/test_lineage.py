"""What a model comes from, told from run folders of every kind: damaged, moved, gone, going round in circles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_cli.lineage import (
    Branch,
    ancestry,
    parents_of,
    run_of,
    trained_prompts,
    training_rewards,
    write_trained_prompts,
)
from rlhf_cli.rows import prompt_hash
from rlhf_cli.run_dir import RunDir

LOCAL = {"name": "?", "base": "?", "adapter": None, "holds": "policy"}


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run folder in a project folder, which is where one stands; what is asked is written as trained on."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)

    def make(name: str, *, asks: str | None = None, began: float = 1.0, **settings: Any) -> Path:
        run = RunDir(project / name)
        run.own.mkdir(parents=True)
        record = {"status": "done", "method": "m", "cwd": str(project), "model": LOCAL, "started": began}
        run.update_run(**record, plan={"settings": settings, "output_dir": name})
        run.resolved_file.write_text(json.dumps(settings))
        if asks is not None:
            write_trained_prompts(run, [{"prompt": asks, "completion": "yes"}])
        return run.path

    return make


def names(branch: Branch) -> list[str]:
    return [each.ancestor.name for each in branch.walk()][1:]


@pytest.mark.parametrize("name", ["here", "./nowhere", "org/model"])
def test_what_is_no_run_has_no_parents(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert parents_of(name) == ()
    assert training_rewards(name) == []
    known = trained_prompts(name)
    assert len(known.hashes) == 0
    assert known.unknown == (("./nowhere",) if name == "./nowhere" else ())


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "[1]", "null", '"text"', '{"plan": 3, "model": [], "cwd": 1}', "\udcff"]
)
def test_a_damaged_record_leaves_what_the_settings_tell(damage: str, make_run: Callable[..., Path]) -> None:
    make_run("runs/sft", asks="a")
    run = make_run("runs/ppo", asks="b", model_name_or_path="runs/sft")
    RunDir(run).run_file.write_bytes(damage.encode(errors="surrogateescape"))
    (parent,) = parents_of(run)
    assert parent.run is not None
    assert parent.run.path.name == "sft"
    assert len(trained_prompts(run).hashes) == 2
    RunDir(run).resolved_file.write_text(damage.encode(errors="replace").decode())
    assert parents_of(run) == ()


def test_a_circle_is_gone_round_once(make_run: Callable[..., Path]) -> None:
    one = make_run("one", asks="1", model_name_or_path="two")
    make_run("two", asks="2", model_name_or_path="one")
    tree = ancestry(one)
    assert names(tree) == ["two", "one"]
    assert [each.repeated for each in tree.walk()] == [False, False, True]
    assert len(trained_prompts(one).hashes) == 2


@pytest.mark.parametrize(
    ("model", "adapter", "unknown"),
    [("./gone", None, True), ("runs/gone", None, True), ("org/of-the-hub", "hub", False)],
)
def test_a_folder_that_is_gone_is_not_a_model_of_the_hub(
    model: str, adapter: str | None, unknown: bool, make_run: Callable[..., Path]
) -> None:
    run = make_run("run", asks="a", model_name_or_path=model)
    if adapter:
        RunDir(run).update_run(model={"name": model, "base": model, "adapter": None, "holds": None})
    (parent,) = parents_of(run)
    assert (parent.folder, parent.run) == (None, None)
    assert ("gone" in parent.note) == unknown
    assert trained_prompts(run).unknown == ((model,) if unknown else ())


def test_a_model_of_the_hub_is_not_a_folder_that_came_later(make_run: Callable[..., Path]) -> None:
    run = make_run("run", asks="a", model_name_or_path="org/model")
    RunDir(run).update_run(model={"name": "org/model", "base": "org/model", "adapter": None, "holds": None})
    make_run("org/model", asks="b")
    assert parents_of(run)[0].run is None
    assert len(trained_prompts(run).hashes) == 1


def test_what_a_run_before_was_trained_on_may_be_unknown(make_run: Callable[..., Path]) -> None:
    make_run("old")
    torn = make_run("torn", asks="x", model_name_or_path="old")
    RunDir(torn).trained_prompts_file.write_bytes(b"\x93NUMPY")
    run = make_run("run", asks="a", model_name_or_path="torn", reward_model_path=["bare", "org/judge"])
    Path("bare").mkdir()
    known = trained_prompts(run)
    assert known.unknown == ("torn", "old", "bare", "org/judge")
    assert len(known.hashes) == 1


def test_an_adapter_of_no_run_is_unknown_and_names_its_base(make_run: Callable[..., Path]) -> None:
    make_run("full", asks="b")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "full"}))
    known = trained_prompts(make_run("run", asks="a", model_name_or_path="adapter"))
    assert known.unknown == ("adapter",)
    assert len(known.hashes) == 2


def test_prompts_of_all_ancestors_are_known_once_each(make_run: Callable[..., Path]) -> None:
    make_run("sft", asks="Who, then?")
    make_run("reward", asks="who then", model_name_or_path="sft")
    run = make_run("ppo", asks="What now?", model_name_or_path="sft", reward_model_path="reward")
    known = trained_prompts(run)
    assert known.unknown == ()
    assert known.hashes.dtype == np.uint64
    assert known.hashes.tolist() == sorted(prompt_hash({"prompt": text}) for text in ("who then", "what now"))
    asked = [{"prompt": text} for text in ("WHO THEN", "never asked", "", "what now")]
    assert known.count(asked) == 2


def test_rows_without_a_prompt_leave_nothing_and_conversations_all_they_answer(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.own.mkdir()
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    rows = [
        {"text": "once upon a time"},
        {"prompt": "?!"},
        {"messages": [*turns, {"role": "assistant", "content": "d"}]},
    ]
    write_trained_prompts(run, [*rows, {"messages": turns[1:2]}])
    kept = np.load(run.trained_prompts_file).tolist()
    assert kept == sorted({prompt_hash({"prompt": "a"}), prompt_hash({"prompt": turns})})
    assert not list(run.own.glob(".*"))


@pytest.mark.parametrize("part", ["checkpoint-20", "members/2", "members/2/checkpoint-5", "best"])
def test_a_part_of_a_run_is_of_that_run(part: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run("run")
    if part == "best":
        (run / "checkpoint-20").mkdir()
        (run / "best").symlink_to("checkpoint-20")
    else:
        RunDir(run / part).own.mkdir(parents=True)
    if part == "members/2":
        RunDir(run / part).update_run(steps_done=3)  # as an ensemble leaves it
    assert run_of(run / part) == RunDir(run)
    make_run("next", model_name_or_path=f"run/{part}")
    (parent,) = parents_of("next")
    assert parent.run == RunDir(run)
    assert run_of(tmp_path) is None


def test_a_project_may_be_moved_and_asked_from_elsewhere(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("runs/sft", asks="a")
    make_run("runs/ppo", asks="b", model_name_or_path="runs/sft")
    monkeypatch.chdir(tmp_path)
    assert len(trained_prompts("project/runs/ppo").hashes) == 2
    (tmp_path / "project").rename(tmp_path / "moved")
    assert len(trained_prompts("moved/runs/ppo").hashes) == 2


def test_a_run_that_was_moved_aside_is_found_where_it_is(make_run: Callable[..., Path]) -> None:
    make_run("sft.old-1", asks="older", began=1.0)
    make_run("sft.old-2", asks="old", began=2.0)
    make_run("sft", asks="new", began=4.0)
    (parent,) = parents_of(make_run("ppo", began=3.0, model_name_or_path="sft"))
    assert parent.run is not None
    assert (parent.run.path.name, parent.begun_again) == ("sft.old-2", False)
    (parent,) = parents_of(make_run("first", began=0.5, model_name_or_path="sft"))
    assert parent.begun_again


def test_rewards_are_those_of_the_line_of_models_nearest_first(make_run: Callable[..., Path], tmp_path: Path) -> None:
    project = tmp_path / "project"
    make_run("spoilt", reward_funcs="never.py:f")
    make_run("reward", model_name_or_path="spoilt")
    Path("rewards.py").write_text("")
    make_run("one", reward_funcs=["rewards.py:polite", "package.module:f"], reward_model_path="./gone")
    make_run("dpo", model_name_or_path="one/checkpoint-2")
    two = make_run("two", model_name_or_path="dpo", reward_model_path=["reward", "org/judge"])
    assert training_rewards(two) == [
        str(project / "reward"), "org/judge", str(project / "gone"), f"{project}/rewards.py:polite", "package.module:f",
    ]  # fmt: skip
    assert training_rewards(two / "checkpoint-7") == training_rewards(two)
