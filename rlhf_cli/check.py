"""Check one recipe: its keys, and as far as asked its rows, their tokens, and the memory a run takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.errors import EnvironmentFault, Problem, RecipeError, UserError
from rlhf_cli.eval_recipe import EVALUATION
from rlhf_cli.methods import method_of
from rlhf_cli.methods.base import Method
from rlhf_cli.pipeline import check_commands
from rlhf_cli.pipeline_file import Pipeline, is_pipeline, read_pipeline
from rlhf_cli.recipe import Recipe, apply_environment, read_recipe
from rlhf_cli.redaction import find_secrets, hide_in, hide_named
from rlhf_cli.terminal import paint, put, say, say_error


def check_recipe(
    name: str, method: str | None, wanted: frozenset[str], *, form: str, resolved: bool
) -> tuple[dict[str, Any], int]:
    """Check one recipe and show it.

    Args:
        name: The recipe file.
        method: What it is for, where it does not say so.
        wanted: Of "rows", "tokens", "fit" and "probe", what to look at beside the keys.
        form: human, json or github.
        resolved: Show every value and where it comes from.

    Returns:
        The outcome as JSON, and its exit code.
    """
    hint, code, told = None, 0, None
    outcome: dict[str, Any] = {"file": name}
    try:
        if is_pipeline(Path(name)):
            pipeline = _check_pipeline(name, wanted)
            problems = [warning for stage in pipeline.stages for warning in stage.recipe.warnings]
            told = f"{len(pipeline.stages)} stages"
        else:
            recipe = read_recipe(Path(name), method=method)
            problems = recipe.warnings
            (method_of(recipe) or EVALUATION).check(recipe)
            if wanted:
                apply_environment(recipe)
            _inspect(recipe, wanted, outcome, show=form == "human")
            told = f"{recipe.method}, {len(recipe.values)} keys"
            if resolved and form == "human":
                put(_resolved_text(recipe))
    except UserError as error:
        problems, hint, code = error.problems, error.hint, error.exit_code
    if form == "human":
        _show(name, told, problems, hint)
    elif form == "github" and problems:
        put("\n".join(problem.as_github() for problem in problems))
    return {**outcome, "ok": code == 0, "problems": [problem.as_json() for problem in problems]}, code


def _check_pipeline(name: str, wanted: frozenset[str]) -> Pipeline:
    if wanted:
        raise RecipeError("of a pipeline only the keys are checked here", where=name, hint=f"rlhf run {name} --dry-run")
    pipeline = read_pipeline(Path(name))
    check_commands(pipeline)
    return pipeline


def _inspect(recipe: Recipe, wanted: frozenset[str], outcome: dict[str, Any], *, show: bool) -> None:
    """Look at what is wanted; the outcome has what was found, also where a fault ends it."""
    if not wanted:
        return
    method = method_of(recipe)
    if method is None:
        raise RecipeError(f"only the keys of a recipe for `{recipe.method}` can be checked", where=str(recipe.path))
    if "rows" in wanted:
        _inspect_rows(recipe, method, outcome, show=show)
    if "tokens" in wanted:
        from rlhf_cli.findings import inspect_tokens

        findings = inspect_tokens(recipe, method)
        outcome["data"]["tokens"] = findings.as_json()
        if show:
            put(f"\n{findings.as_text()}")
    if "fit" in wanted:
        _inspect_memory(recipe, method, outcome, show=show, probes="probe" in wanted)


def _inspect_rows(recipe: Recipe, method: Method, outcome: dict[str, Any], *, show: bool) -> None:
    from rlhf_cli.survey import survey_rows

    survey = survey_rows(recipe, method.rows)
    outcome["data"] = survey.as_json()
    if show:
        put(survey.as_text())
    if survey.stops_a_run:
        raise survey.tally.error()


def _inspect_memory(recipe: Recipe, method: Method, outcome: dict[str, Any], *, show: bool, probes: bool) -> None:
    """Plan the run, and with `probes` train two steps of it; raises where it does not fit."""
    from rlhf_cli.prepare import prepare

    prepared = prepare(recipe, method)
    plan = prepared.plan
    memory = {"parts_gib": plan.memory.parts_gib, "peak_gib": plan.memory.peak_gib, "free_gib": plan.machine.free_gib}
    outcome["memory"] = {**memory, "fits": plan.fits, "smaller": None if plan.fits else plan.smaller}
    if show:
        put(plan.memory.as_text(plan.machine.free_gib))
    if not plan.fits:
        what = f"it does not fit: about {plan.memory.peak_gib:.2f} GiB, and {plan.machine.free_gib:.2f} are free"
        raise EnvironmentFault(what, where=str(recipe.path), hint=f"what should fit: {plan.smaller}")
    if not probes:
        return
    from rlhf_cli.probe import probe

    measured = probe(prepared, method)
    error = plan.memory.peak_gib / measured.peak_gib - 1
    outcome["memory"]["probe"] = {"peak_gib": measured.peak_gib, "step_s": measured.step_s, "error": error}
    if show:
        put(f"{'measured':<20} {measured.peak_gib:>8.2f} GiB, {measured.step_s:.2f} s a step; plan {error:+.0%}")


def _show(name: str, told: str | None, problems: Sequence[Problem], hint: str | None) -> None:
    for problem in problems:
        say_error(problem.as_text())
    if hint:
        say_error(f"hint: {hint}")
    if told:
        say(f"{paint('ok', 'good')} {name}: {told}")


def _resolved_text(recipe: Recipe) -> str:
    """Every value written but secrets, as YAML, with the place it comes from."""
    lines = [
        (f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}", recipe.where(key))
        for key, value in hide_in(hide_named(recipe.values), find_secrets(recipe.values)).items()
    ]
    width = min(60, max((len(line) for line, _ in lines), default=0))
    return "\n".join(f"{line:<{width}}  # {origin}" for line, origin in lines)
