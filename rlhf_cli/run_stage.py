"""One stage of a pipeline: trained or evaluated here, or as several processes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rlhf_cli.errors import GateError, StageFailed
from rlhf_cli.eval_recipe import EVALUATION
from rlhf_cli.evaluate import evaluate
from rlhf_cli.gates import gate_error
from rlhf_cli.launch import Launch, launch
from rlhf_cli.machine import free_memory
from rlhf_cli.methods import METHODS
from rlhf_cli.recipe import Recipe
from rlhf_cli.train import train


def run_stage(
    recipe: Recipe, processes: Launch | None, *, resume: bool, tell: Callable[[str], None]
) -> GateError | None:
    """Run the command of a recipe to its end.

    Args:
        recipe: Of the stage.
        processes: As how many processes; None is in this one.
        resume: Go on with the run that is there.
        tell: Gets what an evaluation has found, for people.

    Returns:
        The gates that were not met by what is there now.

    Raises:
        UserError: where nothing came of it.
    """
    try:
        if processes is not None:
            return _launch(recipe, processes, resume=resume)
        if recipe.method == EVALUATION.command:
            found = evaluate(recipe)
            tell(found.text)
            return gate_error(found.failed_gates, where=recipe.where("gates")) if found.failed_gates else None
        train(recipe, next(method for method in METHODS if method.command == recipe.method), resume=resume)
    except GateError as error:
        return error
    finally:
        free_memory()
    return None


def _launch(recipe: Recipe, processes: Launch, *, resume: bool) -> GateError | None:
    """Run the command of the recipe's method, as a user would, with a file of this stage alone."""
    trains = recipe.method != EVALUATION.command
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        file = Path(folder, "recipe.yaml")
        file.touch(mode=0o600)  # it may hold secrets
        file.write_text(recipe.text or "", encoding="utf-8")
        command = [sys.executable, "-m", "rlhf_cli", recipe.method, str(file)]
        command += ["--resume"] if resume and trains else []
        code = launch(command, processes.count, processes.environment)
    if code == GateError.exit_code:
        return GateError("a gate was not met", where=recipe.where("gates"))
    if code:
        raise StageFailed(f"ended with exit code {code}", code)
    return None
