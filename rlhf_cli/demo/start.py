"""A real project begun as the demo is laid out: its pipeline, first recipes for a real model, its rows as examples."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.demo import RECIPES
from rlhf_cli.demo.project import PIPELINE, put_into, write_data
from rlhf_cli.errors import RecipeError
from rlhf_cli.methods import method_of
from rlhf_cli.pipeline_file import Stage, read_pipeline


def start_project(folder: Path, model: str) -> None:
    """Write it.

    Args:
        folder: Where to; the recipes name it as it is given here.
        model: A Hub id or a model folder.

    Raises:
        RecipeError: when a file of it is there already.
    """
    texts = {PIPELINE: (RECIPES / PIPELINE).read_text(encoding="utf-8")}
    texts |= {f"{stage.name}.yaml": _recipe(stage, model) for stage in read_pipeline(RECIPES / PIPELINE).stages}
    there = [name for name in (*texts, "data") if (folder / name).exists()]
    if there:
        raise RecipeError(f"{folder / there[0]} is there already", hint="name a new folder with `--out`")
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, seed=0)
    for name, text in texts.items():
        (folder / name).write_text(put_into(text, folder), encoding="utf-8")


def _recipe(stage: Stage, model: str) -> str:
    """The first recipe of a stage's method; of the evaluation, the demo's without the true score, which nobody has."""
    method = method_of(stage.recipe)
    file = f"{stage.name}.yaml"
    if method is None:
        lines = (RECIPES / file).read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(line for line in lines if "gold" not in line)
    starts_from = f"demo/runs/{stage.needs[0]}" if stage.needs else model
    text = method.starter.format(
        path=f"demo/{file}", model=starts_from, data=stage.recipe["dataset_name"], output=stage.folder
    )
    return text.replace(" runs/", " demo/runs/")
