"""`rlhf demo` and `rlhf init --from demo`: a project is written, runs, and says whether alignment happened."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.demo.project import HACK, PIPELINE, write_project
from rlhf_cli.errors import RecipeError
from rlhf_cli.pipeline_file import read_pipeline
from rlhf_cli.recipe import read_recipe
from tests.integration.test_resume import weights

TRAINED = ("sft", "reward", "ppo", "dpo")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's project, written as `rlhf demo` writes it."""
    monkeypatch.chdir(tmp_path)
    assert write_project(Path("demo"), 0)
    return tmp_path / "demo"


def shorten(project: Path, *, learns: bool = True) -> None:
    """Edit the recipes, as a user may, so that they train next to nothing, or for nothing."""
    for file in project.glob("*.yaml"):
        text = re.sub(r"(?m)^total_episodes: .*$", "total_episodes: 8", file.read_text())
        text = re.sub(r"(?m)^per_device_train_batch_size: .*$", "per_device_train_batch_size: 8", text)
        if not learns:
            text = re.sub(r"(?m)^learning_rate: .*$", "learning_rate: 0.0", text)
        if "num_train_epochs" in text:
            text += "max_steps: 2\n"
        file.write_text(text + ("report: false\n" if text.startswith("# ") and "\nmethod:" in text else ""))


def without_gates(recipe: Path) -> None:
    recipe.write_text(re.sub(r"(?m)^gates:.*\n(  - .*\n)+", "", recipe.read_text()))


def test_its_recipes_are_ordinary_ones(project: Path) -> None:
    recipes = [file for file in project.glob("*.yaml") if file.name not in (PIPELINE, HACK)]
    assert len(recipes) == 8
    for file in recipes:
        recipe = read_recipe(file)
        assert not recipe.warnings, file
        assert file.read_text().startswith("# ")
        assert str(recipe["dataset_name"]).startswith("demo/data/")
        assert Path(recipe["dataset_name"]).is_file()
        assert str(recipe["output_dir"]).startswith("demo/runs/")
    whole, hack = (read_pipeline(project / name) for name in (PIPELINE, HACK))
    assert [stage.name for stage in whole.stages] == [*TRAINED, "eval"]
    for pipeline in (whole, hack):
        for stage in pipeline.stages:
            # What the pipeline says of a stage is what its recipe says alone, but for the seed.
            alone = read_recipe(project / f"{stage.name}.yaml")
            assert {**stage.recipe.values, "seed": 0} == {**alone.values, "seed": 0}
    assert hack.stages[0].recipe.values == whole.stages[0].recipe.values


def test_what_is_there_is_left_alone(project: Path) -> None:
    (project / "ppo.yaml").write_text("# edited\n")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert not write_project(Path("demo"), 0)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    with pytest.raises(RecipeError, match="was written with seed 0"):
        write_project(Path("demo"), 1)
    Path("other").mkdir()
    Path("other/mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="holds no demo"):
        write_project(Path("other"), 0)
    assert [path.name for path in Path("other").iterdir()] == ["mine.txt"]
    # An interruption while it was written leaves nothing in the way.
    Path(".third.new/base").mkdir(parents=True)
    assert write_project(Path("third"), 0)
    assert not Path(".third.new").exists()


def test_where_alignment_did_not_happen_the_exit_code_says_so(project: Path, rlhf: Callable[..., Any]) -> None:
    shorten(project, learns=False)
    done = rlhf("demo")
    assert done.code == 3, done.err
    # A reward model that has learnt nothing: PPO is not begun on it.
    assert "error: demo/reward.yaml:" in done.err
    assert "stage `reward`: gate accuracy (ci_low) asks min 0.6" in done.err
    assert "not begun: ppo, dpo, eval" in done.err
    assert not (project / "runs/ppo").exists()
    without_gates(project / "reward.yaml")
    again = rlhf("demo")
    assert again.code == 3, again.err
    assert "is there already; its recipes run as they are" in again.err
    assert "gate reward_difference (ci_low) of ppo by `gold` asks min 0.03" in again.err
    assert again.err.count("unchanged") == 2
    outcome = json.loads((project / "runs/eval/eval.json").read_text())
    questions = (project / "data/questions.jsonl").read_text().splitlines()
    assert (outcome["prompts"], outcome["answers"]) == (len(set(questions)), len(questions))
    assert not outcome["warnings"]
    assert "3 of 80 questions that nothing was trained on" in again.out
    assert re.search(r"(?m)^gold \(the true score\) +sft 0\.\d\d \[", again.out)
    assert "NOT met" in again.out
    assert rlhf("demo").code == 3


def test_an_interrupted_demo_goes_on(
    project: Path, start: Callable[..., Any], rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    shorten(project)
    without_gates(project / "reward.yaml")
    command = start("demo")
    command.wait_for((project / "runs/reward/rlhf/metrics.jsonl").exists)
    command.send(signal.SIGINT)
    stopped = command.wait()
    assert stopped.code == 130
    assert "stage `reward`: " in stopped.err
    assert "hint: `rlhf demo` goes on from there" in stopped.err
    rlhf("demo")
    Path("demo").rename("first")
    assert write_project(Path("demo"), 0)
    shorten(project)
    without_gates(project / "reward.yaml")
    rlhf("demo")
    for stage in TRAINED:
        assert weights(tmp_path / "first/runs" / stage) == weights(project / "runs" / stage), stage


def test_a_project_begins_as_the_demo_is_laid_out(rlhf: Callable[..., Any], tmp_path: Path, tiny_base: Path) -> None:
    done = rlhf("init", "--from", "demo", "--model", str(tiny_base), "--out", "mine")
    assert done.code == 0, done.err
    assert "hint: rlhf run mine/pipeline.yaml --dry-run" in done.err
    texts = "".join(file.read_text() for file in (tmp_path / "mine").glob("*.yaml"))
    assert "demo/" not in texts
    assert "gold" not in texts
    assert " runs/" not in texts
    for file in (tmp_path / "mine").glob("*.yaml"):
        assert rlhf("check", f"mine/{file.name}").code == 0
    planned = rlhf("run", "mine/pipeline.yaml", "--dry-run", "--json")
    assert planned.code == 0, planned.err
    stages = json.loads(planned.out)["stages"]
    assert [stage["stage"] for stage in stages] == [*TRAINED, "eval"]
    assert all(stage["plan"]["steps"] > 0 for stage in stages[:-1])
    assert "adapter" in stages[0]["plan"]["roles"]["policy"]
    again = rlhf("init", "--from", "demo", "--out", "mine")
    assert again.code == 2
    assert "mine/pipeline.yaml is there already" in again.err


@pytest.mark.slow
def test_the_whole_demo_holds_and_the_hack_is_caught(rlhf: Callable[..., Any], tmp_path: Path) -> None:
    done = rlhf("demo")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "demo/runs/eval/eval.json").read_text())
    assert {verdict["model"]: verdict["outcome"] for verdict in found["verdicts"]}["ppo"] == "better"
    assert all(gate["met"] for gate in found["gates"])
    hacked = rlhf("demo", "--hack")
    assert hacked.code == 0, hacked.err
    assert "unchanged" in hacked.err.splitlines()[2]
    found = json.loads((tmp_path / "demo/runs/hack-eval/eval.json").read_text())
    assert [verdict["outcome"] for verdict in found["verdicts"]] == ["over-optimised"]
    rewards = {model: each["rewards"] for model, each in found["models"].items()}
    judge = next(name for name in rewards["ppo"] if name != "gold")
    assert rewards["ppo"][judge]["ci_low"] > rewards["sft"][judge]["ci_high"]
    assert rewards["ppo"]["gold"]["value"] < rewards["sft"]["gold"]["value"]
