"""One stage of a pipeline: trained or evaluated here, or as several processes."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from rlhf_cli.checkpoints import StopOnSignal
from rlhf_cli.errors import GateError, Interrupted, StageFailed
from rlhf_cli.evaluate import evaluate
from rlhf_cli.gates import gate_error
from rlhf_cli.launch import launch
from rlhf_cli.machine import free_memory, hand_back_memory
from rlhf_cli.methods import method_of
from rlhf_cli.processes import Launch
from rlhf_cli.recipe import Recipe
from rlhf_cli.train import train


def run_stage(
    recipe: Recipe, processes: Launch | None, *, resume: bool, tell: Callable[[str], None] | None
) -> GateError | Interrupted | None:
    """Run the command of a recipe to its end.

    Args:
        recipe: Of the stage.
        processes: As how many processes; None is in this one.
        resume: Go on with the run that is there.
        tell: Gets what an evaluation has found, for people; None where that is not to be on stdout.

    Returns:
        What ends a pipeline although the stage is done: gates that its outcome does not meet, or a signal that came too
        late to stop it.

    Raises:
        UserError: where nothing came of it.
    """
    stop = StopOnSignal()
    try:
        if processes is not None:
            return _launch(recipe, processes, resume=resume, out=None if tell else sys.stderr)
        method = method_of(recipe)
        if method is None:
            found = evaluate(recipe)
            if tell is not None:
                tell(found.text)
            return gate_error(found.failed_gates, where=recipe.where("gates")) if found.failed_gates else None
        train(recipe, method, resume=resume, stop=stop)
    except GateError as error:
        return error
    finally:
        free_memory()
        hand_back_memory()
    return _stopped_when_done(stop.signum)


def _launch(recipe: Recipe, processes: Launch, *, resume: bool, out: IO[str] | None) -> GateError | Interrupted | None:
    """Run the command of the recipe's method, as a user would, with a file of this stage alone."""
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        file = Path(folder, "recipe.yaml")
        file.touch(mode=0o600)  # it may hold secrets
        file.write_text(recipe.text or "", encoding="utf-8")
        command = [sys.executable, "-m", "rlhf_cli", recipe.method, str(file)]
        command += ["--resume"] if resume and method_of(recipe) else []
        code, signum = launch(command, processes, out)
    if code == GateError.exit_code:
        return gate_error(["a gate was not met"], where=recipe.where("gates"))
    if code - 128 in (signal.SIGINT, signal.SIGTERM):
        raise Interrupted(code - 128, "stopped")
    if code:
        raise StageFailed(f"ended with exit code {code}", code)
    return _stopped_when_done(signum)


def _stopped_when_done(signum: int | None) -> Interrupted | None:
    return Interrupted(signum, "stopped when it was done") if signum is not None else None
