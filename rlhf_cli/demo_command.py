"""The command `rlhf demo`: the whole loop on a toy world whose true preference is known, and what came of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rlhf_cli.demo.project import HACK, PIPELINE, write_project
from rlhf_cli.demo.show import show_evaluation
from rlhf_cli.errors import GateError
from rlhf_cli.pipeline import Outcome, Wishes, check_commands, run_pipeline
from rlhf_cli.pipeline_file import Pipeline, read_pipeline
from rlhf_cli.run_dir import EVALUATION_FILE, REPORT_FILE
from rlhf_cli.runs import duration
from rlhf_cli.terminal import put, say, say_error, width

_DEFAULT = Path("demo")


def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write the project.")] = _DEFAULT,
    hack: Annotated[bool, typer.Option("--hack", help="Train on an annotator who takes length for quality.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows, and of all that is trained.")] = 0,
) -> None:
    """The whole loop on a toy world, offline and on a CPU, in minutes; exit code 3 where alignment did not happen.

    Writes a project of ordinary recipes, and runs it: SFT, a reward model, PPO and DPO, judged by the true preference.
    """
    started = time.monotonic()
    if write_project(folder, seed):
        say(f"a village, its questions, and who answers them how: written into {folder}/")
    else:
        say(f"{folder}/ is there already; its recipes run as they are")
    pipeline = read_pipeline(folder / (HACK if hack else PIPELINE))
    check_commands(pipeline)
    last = pipeline.stages[-1]
    try:
        outcomes = list(run_pipeline(pipeline, Wishes(tell=lambda text: None)))
    except GateError:
        if (last.folder / EVALUATION_FILE).is_file():
            put(f"\n{show_evaluation(last.folder, width())}\n")
        raise
    put(f"\n{show_evaluation(last.folder, width())}\n")
    say(f"{_took(outcomes, time.monotonic() - started)}; {last.folder / REPORT_FILE} shows more")
    say_error(f"hint: {_next(pipeline, folder, hack=hack)}")


def _took(outcomes: list[Outcome], seconds: float) -> str:
    ran = sum(outcome.ran for outcome in outcomes)
    return f"{ran} of {len(outcomes)} stages ran, in {duration(seconds)}"


def _next(pipeline: Pipeline, folder: Path, *, hack: bool) -> str:
    command = "rlhf demo --hack" if folder == _DEFAULT else f"rlhf demo {folder} --hack"
    other = "" if hack else f"`{command}` shows a reward being hacked; "
    changed = f"edit a recipe in {folder}/ and `rlhf run {pipeline.path}` runs what changes; "
    return f"{other}{changed}`rlhf init --from demo` starts your own"
