"""The story of a pipeline: each stage in turn, and what has not changed left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rlhf_cli.basis import Basis, find_basis
from rlhf_cli.errors import (
    DISK_FULL,
    EnvironmentFault,
    Interrupted,
    RecipeError,
    StageFailed,
    UserError,
)
from rlhf_cli.eval_recipe import EVALUATION
from rlhf_cli.freshness import Judgement, Need, State
from rlhf_cli.gates import failed_gates, gate_error
from rlhf_cli.going_on import command_to_go_on
from rlhf_cli.methods import method_of
from rlhf_cli.pipeline_file import Pipeline, Stage, of_stage
from rlhf_cli.processes import Launch, is_launched, take_one_gpu
from rlhf_cli.recipe import apply_environment
from rlhf_cli.redaction import find_secrets
from rlhf_cli.run_dir import EVALUATION_FILE, RunDir, lock
from rlhf_cli.runs import duration
from rlhf_cli.stage_line import describe_stage
from rlhf_cli.terminal import announce, paint, put, say, talk_apart

if TYPE_CHECKING:
    from rlhf_cli.plan import Plan


@dataclass(frozen=True)
class Wishes:
    """How a pipeline is to run."""

    redo: frozenset[str] = frozenset()
    """Stages that run whatever has changed."""
    keep: frozenset[str] = frozenset()
    """Stages whose folders are taken as they are."""
    launch: Launch | None = None
    """As how many processes a stage runs; None is in this one."""
    verbose: bool = False
    """Whether a stage says all that its own command does; else one line, and the rest goes to a file."""
    tell: Callable[[str], None] | None = put
    """Gets what an evaluation has found, for people; None where nothing but the outcome belongs on stdout."""


@dataclass(frozen=True)
class Seen:
    """A stage before it runs."""

    stage: Stage
    judgement: Judgement
    basis: Basis | None
    """None where it is not known before other stages have run."""


@dataclass(frozen=True)
class Outcome:
    """A stage after its turn."""

    stage: Stage
    ran: bool
    why: str
    elapsed_s: float

    def as_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return {
            "stage": self.stage.name,
            "method": self.stage.recipe.method,
            "output_dir": str(self.stage.folder),
            "ran": self.ran,
            "why": self.why,
            "elapsed_s": self.elapsed_s,
        }


def check_commands(pipeline: Pipeline) -> None:
    """Check what no schema says of the stages' keys.

    Raises:
        RecipeError: for the first stage that is wrong.
    """
    for stage in pipeline.stages:
        with _explained(stage, later=()):
            (method_of(stage.recipe) or EVALUATION).check(stage.recipe)


def run_pipeline(pipeline: Pipeline, wishes: Wishes) -> Iterator[Outcome]:
    """Run the stages that have to be run, one for each step of the iterator.

    Yields:
        What became of each stage.

    Raises:
        UserError: of the stage that did not end well; those after it are not begun.
    """
    if is_launched():
        raise RecipeError("a pipeline starts the processes of its stages", hint="rlhf run PIPELINE --num-processes N")
    with _take_folder(pipeline):
        state = State(RunDir(pipeline.output_dir))
        seen = survey(pipeline, state, wishes)
        _refuse_unclear(seen)
        to_run = [each for each in seen if each.judgement.need is not Need.NOTHING]
        if to_run:
            for each in seen:
                if each not in to_run:
                    with _explained(each.stage, later=_after(pipeline, each.stage)):
                        _refuse_missed_gates(each.stage)
            _get_ready(pipeline, to_run, wishes)
        for stage in pipeline.stages:
            yield _take_turn(pipeline, stage, state, wishes)
        state.write()


def _take_folder(pipeline: Pipeline) -> IO[str]:
    """Make the pipeline's folder, and keep every other run of it out until what is returned is closed."""
    folder = RunDir(pipeline.output_dir)
    try:
        folder.own.mkdir(parents=True, exist_ok=True)
        return lock(folder)
    except OSError as error:
        what = f"the pipeline's output_dir `{folder.path}` cannot be written to: {error.strerror}"
        raise EnvironmentFault(what, where=str(pipeline.path)) from error


def survey(pipeline: Pipeline, state: State, wishes: Wishes) -> list[Seen]:
    """What is to be done for each stage, as far as that is known before any has run."""
    seen: dict[str, Seen] = {}
    for stage in pipeline.stages:
        waits = any(seen[name].judgement.need is not Need.NOTHING for name in stage.needs)
        basis = None if waits else _basis_of(stage, state, wishes)
        seen[stage.name] = Seen(stage, _judge(stage, basis, state, wishes), basis)
    return list(seen.values())


def _judge(stage: Stage, basis: Basis | None, state: State, wishes: Wishes) -> Judgement:
    if stage.name not in wishes.keep:
        return state.judge(stage, basis, redo=stage.name in wishes.redo)
    if not stage.folder.is_dir():
        raise RecipeError(f"there is nothing to keep of `{stage.name}`: {stage.folder} is not there")
    return Judgement(Need.NOTHING, "kept as it is")


def plan_pipeline(pipeline: Pipeline, wishes: Wishes) -> tuple[list[Seen], dict[str, Plan]]:
    """What would be done for each stage, and the plans of those that train; nothing is written."""
    seen = survey(pipeline, State(RunDir(pipeline.output_dir)), wishes)
    to_run = [each for each in seen if each.judgement.need is not Need.NOTHING]
    _set_environment(pipeline)
    take_one_gpu()
    with talk_apart("checking every stage", Path(os.devnull)):
        return seen, _rehearse(to_run, wishes.launch) if to_run else {}


def _basis_of(stage: Stage, state: State, wishes: Wishes) -> Basis:
    # The gates of a run are held against its report card again, which costs nothing.
    leave_out = frozenset({"gates"}) if method_of(stage.recipe) else frozenset()
    launched = wishes.launch
    more = {"processes": launched.count, "accelerate": dict(launched.environment)} if launched else {}
    return find_basis(stage.recipe, state.hashes, more=more, leave_out=leave_out, saves=stage.saves)


def _refuse_unclear(seen: Sequence[Seen]) -> None:
    unclear = [each for each in seen if each.judgement.need is Need.ASK]
    if unclear:
        names = " ".join(f"--keep {each.stage.name}" for each in unclear)
        problems = [of_stage(each.stage.name, RecipeError(each.judgement.why).problems[0]) for each in unclear]
        raise RecipeError(
            "; ".join(each.judgement.why for each in unclear),
            problems=problems,
            hint=f"`{names}` takes it as it is, --redo moves it aside and runs the stage again",
        )


# --- running ------------------------------------------------------------------------------------------------------


def _get_ready(pipeline: Pipeline, to_run: Sequence[Seen], wishes: Wishes) -> None:
    """Import what is heavy, once, and see that every stage could start before the first one does."""
    _set_environment(pipeline)
    say(f"{len(to_run)} of {len(pipeline.stages)} stages to run; loading torch, transformers and TRL")
    if wishes.launch is not None:
        _rehearse_apart()
        return
    take_one_gpu()
    with talk_apart("checking every stage", Path(os.devnull)):
        _rehearse(to_run, None)


def _set_environment(pipeline: Pipeline) -> None:
    for stage in pipeline.stages:
        apply_environment(stage.recipe)


def _rehearse(to_run: Sequence[Seen], planned: Launch | None) -> dict[str, Plan]:
    from rlhf_cli.stand_ins import plan_stages

    return plan_stages([each.stage for each in to_run], planned.variables if planned else None)


def _rehearse_apart() -> None:
    """The same in a process that ends before others are launched: it would hold a part of a GPU."""
    command = [sys.executable, "-m", "rlhf_cli", *sys.argv[1:], "--dry-run"]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        raise StageFailed("a stage could not start", code)


def _take_turn(pipeline: Pipeline, stage: Stage, state: State, wishes: Wishes) -> Outcome:
    """Run a stage, or see that there is nothing to do."""
    number = pipeline.stages.index(stage) + 1
    width = max(len(each.name) for each in pipeline.stages)
    head = f"[{number}/{len(pipeline.stages)}] {stage.name:<{width}}"
    with _explained(stage, later=_after(pipeline, stage)):
        basis = _basis_of(stage, state, wishes)
        judgement = _judge(stage, basis, state, wishes)
        _refuse_unclear([Seen(stage, judgement, basis)])
        if judgement.need is Need.NOTHING:
            if stage.name in wishes.keep:
                state.finish(stage, basis, elapsed_s=0.0)
            announce(f"{head}  {describe_stage(stage.folder)}  {paint(judgement.why, 'faint')}")
            _refuse_missed_gates(stage)
            return Outcome(stage, False, judgement.why, 0.0)
        started = time.monotonic()
        with _talk(head, pipeline, stage, wishes):
            say(f"{stage.recipe.method}: {judgement.why}")
            state.begin(stage, basis, judgement)
            from rlhf_cli.run_stage import run_stage

            failure = run_stage(stage.recipe, wishes.launch, resume=judgement.need is Need.GO_ON, tell=wishes.tell)
            elapsed_s = time.monotonic() - started
            state.finish(stage, basis, elapsed_s=elapsed_s)
        announce(f"{head}  {describe_stage(stage.folder)}  {paint(duration(elapsed_s), 'faint')}")
        if failure is not None:
            raise failure
    return Outcome(stage, True, judgement.why, round(elapsed_s, 1))


def _after(pipeline: Pipeline, stage: Stage) -> list[str]:
    names = [each.name for each in pipeline.stages]
    return names[names.index(stage.name) + 1 :]


def _talk(head: str, pipeline: Pipeline, stage: Stage, wishes: Wishes) -> AbstractContextManager[None]:
    if wishes.verbose or wishes.launch is not None:
        announce(head)
        return nullcontext()
    log = RunDir(pipeline.output_dir).own / "logs" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return talk_apart(head, log)


def _refuse_missed_gates(stage: Stage) -> None:
    """Hold what a run has left against the gates of its recipe as they are now; an evaluation has said what it met."""
    if method_of(stage.recipe):
        numbers = (RunDir(stage.folder).read_run().get("report") or {}).get("numbers")
        failed = failed_gates(stage.recipe["gates"], numbers) if numbers else []
    else:
        failed = [gate["text"] for gate in _read_gates(stage.folder) if not gate["met"]]
    if failed:
        raise gate_error(failed, where=stage.recipe.where("gates"), hint=f"what is there is in {stage.folder}")


def _read_gates(evaluation: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads((evaluation / EVALUATION_FILE).read_text(encoding="utf-8"))["gates"])
    except (OSError, ValueError, KeyError):  # somebody's own, which is to be kept
        return []


@contextmanager
def _explained(stage: Stage, *, later: Sequence[str]) -> Iterator[None]:
    """Let an error say which stage it is of, and what becomes of those after it."""
    try:
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, "stopped") from None
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise EnvironmentFault(f"the disk is full: {error}", hint="make room, and run it again") from error
    except UserError as error:
        error.problems = [of_stage(stage.name, problem) for problem in error.problems]
        if isinstance(error, Interrupted):
            error.hint = f"`{command_to_go_on(find_secrets(stage.recipe.values))}` goes on from there"
        elif later:
            error.hint = "\n".join(filter(None, [error.hint, f"not begun: {', '.join(later)}"]))
        raise
