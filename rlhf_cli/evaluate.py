"""The story of one evaluation: of policies against each other, or of a reward model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.compare import compare_policies
from rlhf_cli.errors import RecipeError
from rlhf_cli.gates import GateOutcome, check_gate
from rlhf_cli.grading import judge_reward_model
from rlhf_cli.machine import describe_environment, is_first_process, wait_for_all
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import find_secrets, hide_in, hide_named
from rlhf_cli.report import write_report
from rlhf_cli.run_dir import RunDir, write_json, write_text
from rlhf_cli.standings import Standings
from rlhf_cli.terminal import say


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


def evaluate(recipe: Recipe) -> Evaluation:
    """Judge the models of a recipe, and write down what came out where `output_dir` says so.

    Raises:
        UserError: when models, data or judges cannot be used.
    """
    folder = _make_output_dir(recipe)
    answers: list[dict[str, Any]] = []
    if recipe["models"]:
        comparison = compare_policies(recipe)
        found = Evaluation(comparison.standings.as_text(), comparison.as_json(), comparison.standings.gates)
        answers = comparison.answers
        _mark_best(recipe, comparison.standings)
    else:
        card, told = judge_reward_model(recipe)
        numbers = {name: number.as_json() for name, number in card.numbers.items()}
        gates = [check_gate(gate, numbers.get(gate["metric"])) for gate in recipe["gates"]]
        found = Evaluation(card.as_text(), told, gates)
    outcome = {
        **found.outcome,
        "environment": describe_environment(),
        "argv": sys.argv,
        "recipe": hide_in(hide_named(recipe.values), find_secrets(recipe.values)),
    }
    if folder is not None and is_first_process():
        _write(folder, outcome, answers, reports=recipe["report"])
    wait_for_all()
    return Evaluation(found.text, outcome, found.gates)


def _make_output_dir(recipe: Recipe) -> Path | None:
    if recipe["output_dir"] is None:
        return None
    folder = Path(recipe["output_dir"]).expanduser()
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
    if answers:
        lines = [json.dumps(answer, ensure_ascii=False, default=str) + "\n" for answer in answers]
        write_text(folder / "answers.jsonl", "".join(lines).encode("utf-8", "replace").decode())
    write_json(folder / "eval.json", outcome)
    if reports:
        say(f"report: {write_report(folder)}")


def _mark_best(recipe: Recipe, standings: Standings) -> None:
    """Let `best` in a run's folder name its checkpoint to ship."""
    if standings.frontier is None or not is_first_process():
        return
    folder = Path(standings.performances[recipe["frontier"]].path)
    draft = folder / ".best.new"
    draft.unlink(missing_ok=True)
    draft.symlink_to(standings.frontier.best)
    draft.replace(folder / "best")
    say(f"{folder}/best is {standings.frontier.best} now")
