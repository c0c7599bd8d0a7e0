"""Tokens in a recipe or on the command line: on no screen, and in no file of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECRET = "hf_" + "Kq7" * 8
FORMS = {
    "plain": f"hub_token: {SECRET}",
    "quoted": f'"hub_token": "{SECRET}"',
    "folded": f"hub_token: >-\n  {SECRET}",
    "its old name": f"push_to_hub_token: {SECRET}",
    "flow": f"env: {{MY_API_KEY: {SECRET}, OTHER: x}}",
    "block": f"env:\n  MY_API_KEY: {SECRET}\n  OTHER: x",
    "by another name": f"env: {{NEPTUNE_APIKEY: {SECRET}, DB_PASS: {SECRET}}}",
    "in an address": f"env: {{HTTPS_PROXY: 'http://anna:{SECRET}@proxy.example:8080'}}",
    "nested": f"model_init_kwargs: {{token: {SECRET}}}",
    "anchored": f"env: {{NAME: &name {SECRET}}}\nhub_token: *name",
}


def files_with_the_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_in_the_recipe_is_not_written_down(
    form: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(max_steps=1, method="sft")
    recipe.write_text(recipe.read_text() + FORMS[form] + "\n")
    trained = rlhf("sft", str(recipe))
    assert trained.code == 0, trained.err
    assert "***" in (tmp_path / "run/rlhf/recipe.yaml").read_text()
    assert not files_with_the_secret(tmp_path / "run")
    resolved = rlhf("check", str(recipe), "--resolved")
    assert resolved.code == 0
    assert "***" in resolved.out
    recipe.write_text(recipe.read_text() + "lr: 1\n")
    wrong = rlhf("check", str(recipe))
    for outcome in (trained, resolved, wrong):
        assert SECRET not in outcome.out + outcome.err


@pytest.mark.parametrize(
    "arguments",
    [("--hub_token", SECRET), (f"--push_to_hub_token={SECRET}",), (f"model_init_kwargs={{token: {SECRET}}}",)],
)
def test_a_secret_on_the_command_line_is_not_written_down(
    arguments: tuple[str, ...], rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    outcome = rlhf("sft", str(write_recipe(max_steps=1)), *arguments)
    assert outcome.code == 0, outcome.err
    assert "***" in " ".join(json.loads((tmp_path / "run/rlhf/run.json").read_text())["argv"])
    assert not files_with_the_secret(tmp_path / "run")
    assert SECRET not in outcome.out + outcome.err


@pytest.mark.parametrize(
    "line",
    [
        f"hub_token: [{SECRET}]", f"env: {{API_KEY: [{SECRET}]}}", f"hub_token: {SECRET}\nhub_token: {SECRET}",
        f"hub_token: {SECRET}: x", f"env: {{API_KEY: {SECRET}", f'"hub_token": "{SECRET}', f"my_token: {SECRET}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["human", "json", "github"])
def test_a_secret_in_a_wrong_line_is_not_shown(
    line: str, form: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path]
) -> None:
    recipe = write_recipe(method="sft")
    recipe.write_text(recipe.read_text() + line + "\n")
    outcome = rlhf("check", str(recipe), "--format", form)
    assert outcome.code == 2
    assert SECRET not in outcome.out + outcome.err


def test_a_secret_is_no_change_of_the_recipe(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(model_init_kwargs={"token": SECRET}, run_name=f"with {SECRET}", lr_scheduler_type="constant")
    assert rlhf("sft", str(recipe), "--max_steps", "2").code == 0
    resumed = rlhf("sft", str(recipe), "--max_steps", "3", "--resume")
    assert resumed.code == 0, resumed.err
    assert not files_with_the_secret(tmp_path / "run/rlhf")
