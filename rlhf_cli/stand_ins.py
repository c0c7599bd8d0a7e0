"""Plans of stages whose models are yet to be made: folders stand in for them that have everything but weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_cli.adapters import adapter_config
from rlhf_cli.data import load_held_out
from rlhf_cli.entrants import survey_ground
from rlhf_cli.errors import UserError
from rlhf_cli.judging import Verdicts
from rlhf_cli.machine import quietly
from rlhf_cli.methods import method_of
from rlhf_cli.methods.base import Method
from rlhf_cli.model_source import Source, find_source, look_into_reward_model
from rlhf_cli.models import describe_model, model_keys
from rlhf_cli.pipeline_file import Stage, of_stage
from rlhf_cli.plan import REWARD_MODEL, Plan
from rlhf_cli.ppo.rewards import load_function
from rlhf_cli.prepare import prepare
from rlhf_cli.recipe import Recipe, as_list, texts_in
from rlhf_cli.references import place_of
from rlhf_cli.reward_model import what_is_read
from rlhf_cli.rows import PREFERENCE
from rlhf_cli.run_dir import BEST, RunDir, refuse_unwritable
from rlhf_cli.tokenizer import load_tokenizer
from rlhf_cli.writing import write_json


def plan_stages(stages: Sequence[Stage], environment: Mapping[str, str] | None) -> dict[str, Plan]:
    """Check rows and settings of every stage, and plan those that train, before the first of them runs.

    Args:
        stages: Those that are yet to run, in their order.
        environment: As `prepare` takes it.

    Returns:
        Plans by stage, with the names that the folders will have. A stage that takes its rows from another's folder has
        none before those are there.

    Raises:
        UserError: when a stage could not start.
    """
    plans: dict[str, Plan] = {}
    with tempfile.TemporaryDirectory(prefix="rlhf-") as name:
        folders: dict[str, tuple[str, str]] = {}
        for stage in stages:
            recipe, here = _elsewhere(stage.recipe, folders), Path(name, stage.name)
            try:
                refuse_unwritable(RunDir(stage.folder), stage.recipe)
                plan = _rehearse(recipe, here, environment, waits=_reads_below(Path(name), recipe))
            except UserError as error:
                named = [replace(each, what=_under_its_name(each.what, folders)) for each in error.problems]
                error.problems = [of_stage(stage.name, problem) for problem in named]
                raise
            if plan is not None:
                plans[stage.name] = _under_their_names(plan, folders)
            folders[stage.name] = (str(stage.folder), str(here))
            _link_checkpoints(stages, stage.folder, here)
    return plans


def _reads_below(folder: Path, recipe: Recipe) -> bool:
    """Whether its rows are those of a stage that is yet to run."""
    texts = (text for key in ("dataset_name", "datasets") for text in texts_in(recipe[key]))
    return any(_inside(text, folder) is not None for text in texts)


def _rehearse(recipe: Recipe, here: Path, environment: Mapping[str, str] | None, *, waits: bool) -> Plan | None:
    """See whether a stage could start, and write what stands in for its outcome; without its rows, only that."""
    method = method_of(recipe)
    if method is None:
        if not waits:
            _check_evaluation(recipe)
        here.mkdir()
        return None
    if waits:
        source = find_source(recipe, method.trains)
        with quietly():
            tokenizer, _ = load_tokenizer(recipe, source, pads_apart=method.trains == REWARD_MODEL)
            _write_stand_in(recipe, method, source, tokenizer, here)
        return None
    prepared = prepare(recipe, method, environment)
    material = prepared.material
    with quietly():
        _write_stand_in(recipe, method, material.source, material.tokenizer, here)
    if method.trains == REWARD_MODEL:
        write_json(RunDir(here).reward_card, {"reads": what_is_read(material.rows.train)})
    return prepared.plan


def _elsewhere(recipe: Recipe, folders: Mapping[str, tuple[str, str]]) -> Recipe:
    values = recipe.values
    for there, here in folders.values():
        values = {key: value if key == "output_dir" else _put(value, there, here) for key, value in values.items()}
    return replace(recipe, values=values)


def _under_their_names(plan: Plan, folders: Mapping[str, tuple[str, str]]) -> Plan:
    roles = {name: _under_its_name(text, folders) for name, text in plan.roles.items()}
    settings = plan.settings
    for there, here in folders.values():
        settings = {key: _put(value, here, there) for key, value in settings.items()}
    return replace(plan, roles=roles, settings=settings)


def _under_its_name(text: str, folders: Mapping[str, tuple[str, str]]) -> str:
    """What is said of a folder that stands in, said of the one it stands for."""
    for there, here in folders.values():
        text = text.replace(here, there)
    return text


def _put(value: Any, before: str, after: str) -> Any:
    """Put one folder in the place of another, wherever a value names it or something in it, however it is written."""
    if isinstance(value, str):
        inside = _inside(value, before)
        return value if inside is None else str(Path(after, inside))
    if isinstance(value, dict):
        return {key: _put(item, before, after) for key, item in value.items()}
    return [_put(item, before, after) for item in value] if isinstance(value, list) else value


def _inside(text: str, folder: str | Path) -> Path | None:
    """Where below a folder a path is; None where it is not."""
    path, place = place_of(text), place_of(folder)
    return path.relative_to(place) if path.is_relative_to(place) else None


def _write_stand_in(
    recipe: Recipe, method: Method, source: Source, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """What a run will leave, but for its weights."""
    labels: dict[str, Any] = {"num_labels": 1} if method.trains == REWARD_MODEL else {}
    model = describe_model(source.base, method.trains, **labels)
    if recipe["use_peft"] or source.adapter:
        config = adapter_config(model_keys(recipe), source, method.trains, model)
        config.base_model_name_or_path = source.base
        config.save_pretrained(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    for number in range(2, (recipe.get("ensemble_size") or 1) + 1):
        shutil.copytree(folder, folder / "members" / str(number), ignore=shutil.ignore_patterns("members"))


def _link_checkpoints(stages: Sequence[Stage], there: Path, here: Path) -> None:
    """Let the checkpoints that stages name stand in too: each is a model like that of the last step."""
    for text in (text for stage in stages for text in texts_in(stage.recipe.values)):
        inside = _inside(text, there)
        if inside is None or len(inside.parts) != 1 or (here / inside).exists():
            continue
        if inside.name.startswith("checkpoint-") or inside.name == BEST:
            (here / inside).symlink_to(here)


def _check_evaluation(recipe: Recipe) -> None:
    if recipe["models"]:
        # Of a frontier, the checkpoints are yet to be made.
        survey_ground(replace(recipe, values={**recipe.values, "frontier": None, "best_of_n": None}))
    else:
        load_held_out(recipe, PREFERENCE)
    for name in as_list(recipe["reward_model_path"]):
        look_into_reward_model(name, where=recipe.where("reward_model_path"))
    for name in as_list(recipe["reward_funcs"]):
        load_function(name)
    if recipe["verdicts_file"]:
        Verdicts(recipe["verdicts_file"])
