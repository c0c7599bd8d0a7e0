"""What the README says is so."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.methods import METHODS
from rlhf_cli.pipeline_file import is_pipeline, read_pipeline
from rlhf_cli.recipe import read_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


def test_the_tree_has_every_file_with_its_first_line() -> None:
    block = re.search(r"## The files\n\n```\n(.*?)```", README, re.DOTALL)
    assert block is not None
    shown = dict(re.findall(r"^(\S+\.py) +(\S.*)$", block.group(1), re.MULTILINE))
    package = ROOT / "rlhf_cli"
    assert shown == {str(path.relative_to(package)): first_line(path) for path in sorted(package.rglob("*.py"))}


def test_the_annotated_recipe_passes(tmp_path: Path) -> None:
    recipe = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    assert not read_recipe(path).warnings


def test_the_shown_error_is_the_one_given(rlhf: Callable[..., Any], tmp_path: Path) -> None:
    shown = re.search(r"\$ rlhf check recipe.yaml\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    lines = ["method: sft", "model_name_or_path: m", "dataset_name: d.jsonl", *["#"] * 5, "learning_rat: 1e-5"]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    assert rlhf("check", "recipe.yaml").err == shown.group(1)


def test_the_rows_shown_train(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], write_ppo_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    table = [line for line in README.splitlines() if line.startswith("| ") and "`{" in line]
    rows = [row for line in table for row in re.findall(r"`(\{.*?\})`", line)]
    assert len(rows) > len(table) > 8
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.jsonl").write_text(row + "\n")
        command, write = ("ppo", write_ppo_recipe) if json.loads(row).keys() == {"prompt"} else ("sft", write_recipe)
        recipe = write(dataset_name=f"{number}.jsonl", max_steps=1, output_dir=f"run-{number}")
        assert rlhf(command, str(recipe)).code == 0


def test_the_run_folder_is_as_drawn(
    rlhf: Callable[..., Any],
    write_recipe: Callable[..., Path],
    write_pairs_recipe: Callable[..., Path],
    write_ppo_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    block = re.search(r"## The run folder\n\n```\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert rlhf("sft", str(write_recipe(test_split_size=0.2))).code == 0
    assert rlhf("train-reward", str(write_pairs_recipe(max_steps=1)), "--output_dir", "run/reward").code == 0
    assert rlhf("ppo", str(write_ppo_recipe()), "--output_dir", "run/ppo").code == 0
    drawn = set(re.findall(r"[\w]+\.(?:safetensors|jsonl|json|jinja|md|yaml)", block.group(1)))
    made = {path.name for path in (tmp_path / "run").rglob("*")}
    assert drawn - {"adapter_model.safetensors", "adapter_config.json"} <= made


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^\| `rlhf ([a-z-]+)", README, re.MULTILINE))))
def test_the_commands_exist(command: str, rlhf: Callable[..., Any]) -> None:
    assert rlhf(command, "--help").code == 0


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_pass_and_say_what_they_are(recipe: Path) -> None:
    checked = read_pipeline(recipe).stages if is_pipeline(recipe) else [read_recipe(recipe)]
    assert not any(getattr(each, "recipe", each).warnings for each in checked)
    assert recipe.read_text().startswith("# ")


def test_no_method_is_named_outside_methods() -> None:
    """A method owns everything about itself."""
    names = {method.command for method in METHODS}
    for path in (ROOT / "rlhf_cli").rglob("*.py"):
        if path.parent.name in ("methods", "demo"):
            continue
        strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert not names & {value for value in strings if isinstance(value, str)}, path
