"""What must be the same for a run to go on: settings, processes, data, and the model it starts from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_cli.changes import refuse_changes, refuse_other_length
from rlhf_cli.data import hash_tokens
from rlhf_cli.errors import DataError, EnvironmentFault, RecipeError
from rlhf_cli.inputs import find_inputs
from rlhf_cli.models import fingerprint_model, fingerprint_weights
from rlhf_cli.plan import Plan
from rlhf_cli.prepare import Prepared
from rlhf_cli.recipe import Recipe
from rlhf_cli.run_dir import RunDir
from rlhf_cli.writing import file_hash, text_hash

_OF_FILES = ("_path", "_file", "_funcs", "_config", "deepspeed")
_ELSEWHERE = ("model_name_or_path", "dataset_config")
"""What the model's own fingerprint and that of the tokens are of."""


def refuse_other_run(prepared: Prepared) -> None:
    """Refuse to resume what has become another run.

    Raises:
        RecipeError: when settings, processes or the model have changed.
        DataError: when the rows have, or the tokens that template and tokenizer make of them.
    """
    run, plan = prepared.run, prepared.plan
    refuse_changes(run, prepared.recipe, plan.public_settings())
    refuse_other_processes(run, plan)
    refuse_other_length(run, prepared.recipe, steps=plan.steps)
    refuse_other_material(run, prepared)


def refuse_other_outcome(prepared: Prepared) -> None:
    """The same for a run that is done, and asked to go on: nothing would come of what has changed.

    Raises:
        RecipeError: when settings or the model have changed.
        DataError: when the rows have.
    """
    run = prepared.run
    with suppress(EnvironmentFault):  # another machine would compute otherwise, if there were anything to compute
        refuse_changes(run, prepared.recipe, prepared.plan.public_settings())
    refuse_other_material(run, prepared)


def refuse_other_processes(run: RunDir, plan: Plan) -> None:
    """Refuse to resume with another number of processes: other batches, and other random numbers in each.

    Raises:
        RecipeError: saying what becomes of the batch, and how to go on as before.
    """
    before = run.read_run().get("plan", {})
    processes = before.get("machine", {}).get("processes", plan.machine.processes)
    if processes == plan.machine.processes:
        return
    now = f"{plan.machine.processes} process{'es' if plan.machine.processes > 1 else ''}"
    raise RecipeError(
        f"the run began with {processes} process{'es' if processes > 1 else ''} and {before['batch']} examples a step; "
        f"with {now} a step would take {plan.batch}",
        where=str(run.path),
        hint=f"`--num-processes {processes}` goes on as before; or train anew with another output_dir",
    )


def fingerprints(prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a run to go on: the weights it starts from, its tokens, and what else it names."""
    material = prepared.material
    return {
        "model": fingerprint_model(prepared.recipe, material.source),
        "tokens": hash_tokens(material.train.dataset),
        "test tokens": hash_tokens(material.test.dataset) if material.test else "",
        "files": _hash_files(prepared.recipe),
    }


def _hash_files(recipe: Recipe) -> dict[str, str]:
    """Of the rewards, templates and configurations that a recipe names, functions with what they import."""
    named = {key: value for key, value in recipe.values.items() if key.endswith(_OF_FILES) and key not in _ELSEWHERE}
    return {name: _hash_of(path) for name, path in sorted(find_inputs(named).items())}


def _hash_of(path: Path) -> str:
    """Of a file its content, of a model samples of its weights, those of an ensemble's members with them."""
    if path.is_file():
        return file_hash(path)
    return text_hash("".join(fingerprint_weights(str(each)) for each in (path, *sorted(path.glob("members/*")))))


def refuse_other_material(run: RunDir, prepared: Prepared) -> None:
    """Refuse to go on with other weights, data or rewards than the run began with, where it came to note them.

    Raises:
        DataError: when the rows, or the tokens that template and tokenizer make of them, are others.
        RecipeError: when the model the run starts from is another, or a reward or file that the recipe names.
    """
    before = run.read_run()
    if "fingerprints" not in before:
        return
    now = fingerprints(prepared)
    hint = "put it back, or train anew with another output_dir"
    if before.get("data") != prepared.material.rows.sources:
        raise DataError("the data has changed since the run began", where=str(run.path), hint=hint)
    kept = before["fingerprints"]
    if kept.get("tokens") != now["tokens"] or kept.get("test tokens") != now["test tokens"]:
        what = "the rows give other tokens than when the run began: its chat template or tokenizer has changed"
        raise DataError(what, where=str(run.path), hint=hint)
    files = kept.get("files", now["files"])
    if other := sorted(name for name in now["files"] if files.get(name) != now["files"][name]):
        raise RecipeError(f"`{other[0]}` has changed since the run began", where=str(run.path), hint=hint)
    if kept.get("model") != now["model"]:
        name = prepared.material.source.name
        raise RecipeError(f"the model `{name}` has changed since the run began", where=str(run.path), hint=hint)
