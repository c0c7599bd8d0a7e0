"""The story of one evaluation: of policies against each other, or of a reward model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.compare import compare_policies
from rlhf_cli.errors import RecipeError
from rlhf_cli.eval_recipe import models_of
from rlhf_cli.faults import explained_exhaustion
from rlhf_cli.gates import GateOutcome, check_gate
from rlhf_cli.grading import judge_reward_model
from rlhf_cli.machine import (
    describe_environment,
    detect_machine,
    first_process_first,
    is_first_process,
    leave_processes,
    wait_for_all,
)
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import find_secrets, hide_in, hide_named
from rlhf_cli.report import tell_report
from rlhf_cli.run_dir import ANSWERS_FILE, BEST, EVALUATION_FILE, REPORT_FILE, RunDir
from rlhf_cli.terminal import say, say_error
from rlhf_cli.writing import finite, write_json, write_text


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation."""

    text: str
    """For a person."""
    outcome: dict[str, Any]
    """The same as JSON."""
    gates: Sequence[GateOutcome]

    @property
    def failed_gates(self) -> list[str]:
        """What was asked for and is not reached."""
        return [gate.text for gate in self.gates if not gate.met]


@explained_exhaustion("`per_device_eval_batch_size: 1` answers one prompt at a time")
def evaluate(recipe: Recipe) -> Evaluation:
    """Judge the models of a recipe, and write down what came out where `output_dir` says so.

    Raises:
        UserError: when models, data or judges cannot be used.
    """
    with first_process_first(detect_machine()):  # from here on the processes of a launch share the work
        folder = _make_output_dir(recipe)
    answers: list[dict[str, Any]] = []
    frontier = None
    if recipe["models"]:
        comparison = compare_policies(recipe)
        found = Evaluation(comparison.standings.as_text(), comparison.as_json(), comparison.standings.gates)
        answers, frontier = comparison.answers, comparison.standings.frontier
    else:
        card, told = judge_reward_model(recipe)
        numbers = {name: number.as_json() for name, number in card.numbers.items()}
        gates = [check_gate(gate, numbers.get(gate["metric"])) for gate in recipe["gates"]]
        found = Evaluation(card.as_text(), told, gates)
    outcome = {
        **found.outcome,
        "gates": [gate.as_json() for gate in found.gates],
        "environment": describe_environment(),
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "recipe": hide_named(recipe.values),
    }
    outcome = hide_in(outcome, find_secrets(recipe.values))
    if folder is not None and is_first_process():
        _write(folder, outcome, answers, reports=recipe["report"])
    if frontier is not None and frontier.best is not None and is_first_process():
        _mark_best(Path(models_of(recipe)[frontier.run]), frontier.best)
    wait_for_all()
    leave_processes()
    return Evaluation(found.text, outcome, found.gates)


def _make_output_dir(recipe: Recipe) -> Path | None:
    if recipe["output_dir"] is None:
        return None
    folder = Path(os.path.expanduser(recipe["output_dir"]))
    if RunDir(folder).run_file.exists():
        raise RecipeError(
            f"`output_dir: {folder}` holds a training run, whose report would be overwritten",
            where=recipe.where("output_dir"),
            hint="name a folder of its own, such as `output_dir: runs/eval`",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"`output_dir: {folder}` cannot be made: {error.strerror}"
        raise RecipeError(what, where=recipe.where("output_dir")) from None
    return folder


def _write(folder: Path, outcome: dict[str, Any], answers: Sequence[dict[str, Any]], *, reports: bool) -> None:
    """Put it in the place of what an evaluation before has left."""
    if answers:
        lines = [json.dumps(finite(answer), ensure_ascii=False, default=str) + "\n" for answer in answers]
        write_text(folder / ANSWERS_FILE, "".join(lines).encode("utf-8", "replace").decode())
    else:
        (folder / ANSWERS_FILE).unlink(missing_ok=True)
    write_json(folder / EVALUATION_FILE, outcome)
    if reports:
        tell_report(folder)
    else:
        (folder / REPORT_FILE).unlink(missing_ok=True)


def _mark_best(run: Path, checkpoint: str) -> None:
    """Let `best` in a run's folder name its checkpoint to ship."""
    draft = run / ".best.new"
    try:
        draft.unlink(missing_ok=True)
        draft.symlink_to(checkpoint)
        draft.replace(run / BEST)
    except OSError as error:
        say_error(f"warning: {run / BEST} cannot be linked to {checkpoint}: {error.strerror}")
        draft.unlink(missing_ok=True)
        return
    say(f"{run / BEST} is {checkpoint} now")
