"""Whether a stage of a pipeline has to run: what became of it before, and what has changed since."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from rlhf_cli.basis import Basis, FileHashes
from rlhf_cli.errors import EnvironmentFault, RecipeError
from rlhf_cli.pipeline_file import Stage
from rlhf_cli.run_dir import EVALUATION_FILE, RunDir, move_aside, refuse_taken
from rlhf_cli.terminal import say
from rlhf_cli.writing import write_json

STARTING, RUNNING, DONE = "starting", "running", "done"
_SHOWN = 4
"""Changes, or files, that are named."""


class Need(Enum):
    """What is to be done for a stage."""

    NOTHING = "nothing"
    RUN = "run"
    GO_ON = "go on"
    WAIT = "wait"
    """For the stages whose outcome it reads: then it is known."""
    ASK = "ask"
    """Somebody, since its folder is not as the pipeline left it."""


@dataclass(frozen=True)
class Judgement:
    """What is to be done for a stage, and why."""

    need: Need
    why: str


@dataclass
class Made:
    """What became of a stage."""

    folder: str
    """As the recipe names it, so that a project can be moved."""
    basis: Basis
    status: str
    """STARTING while what was there is moved aside, then RUNNING, then DONE."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Hashes of the files it left, by name in the folder."""
    elapsed_s: float = 0.0
    ended: float | None = None


class State:
    """What became of each stage, kept in the pipeline's folder."""

    def __init__(self, run: RunDir) -> None:
        self._file = run.own / "pipeline.json"
        self.made, known = _read(self._file)
        self.hashes = FileHashes(known)

    def judge(self, stage: Stage, basis: Basis | None, *, redo: bool = False) -> Judgement:
        """What is to be done for a stage.

        Args:
            stage: The stage.
            basis: What its outcome would be made from; None where that is not known yet.
            redo: Whether it is to run whatever has changed.
        """
        made = self.made.get(stage.name)
        if made is None or made.folder != str(stage.folder):
            return self._judge_unknown(stage, redo=redo)
        if redo:
            return Judgement(Need.RUN, "asked for with --redo")
        return self._judge_known(stage, made, basis)

    def _judge_known(self, stage: Stage, made: Made, basis: Basis | None) -> Judgement:
        if made.status == DONE and not stage.folder.is_dir():
            return Judgement(Need.RUN, f"{stage.folder} is gone")
        if basis is None:
            return Judgement(Need.WAIT, f"reads {_listed(stage.needs)}")
        if changes := basis.changes_since(made.basis):
            return Judgement(Need.RUN, f"changed: {_listed(changes)}")
        if made.status != DONE:
            return Judgement(Need.GO_ON if made.status == RUNNING else Need.RUN, "interrupted")
        return self._compare_outputs(stage, made)

    def _judge_unknown(self, stage: Stage, *, redo: bool) -> Judgement:
        if _is_free(stage.folder):
            return Judgement(Need.RUN, "not run yet")
        if redo:
            _refuse_foreign(stage)
            return Judgement(Need.RUN, "asked for with --redo")
        return Judgement(Need.ASK, f"{stage.folder} holds what this pipeline has not made")

    def _compare_outputs(self, stage: Stage, made: Made) -> Judgement:
        there = self.hashes.of_files(stage.folder)
        if lost := sorted(made.outputs.keys() - there.keys()):
            return Judgement(Need.RUN, f"{_listed(lost)} in {stage.folder} {'are' if len(lost) > 1 else 'is'} gone")
        if edited := sorted(name for name in there if made.outputs.get(name) != there[name]):
            what = f"{_listed(edited)} in {stage.folder} {'were' if len(edited) > 1 else 'was'} changed since it ended"
            return Judgement(Need.ASK, what)
        return Judgement(Need.NOTHING, "unchanged")

    def begin(self, stage: Stage, basis: Basis, judgement: Judgement) -> None:
        """Make room for a stage, and keep that it runs; what is in its folder is moved aside, and never deleted."""
        if judgement.need is not Need.GO_ON:
            self.made[stage.name] = Made(str(stage.folder), basis, STARTING)
            self.write()
            _make_room(stage)
        self.made[stage.name].status = RUNNING
        self.write()

    def finish(self, stage: Stage, basis: Basis, *, elapsed_s: float) -> None:
        """Keep what a stage has left."""
        self.made[stage.name] = Made(
            str(stage.folder),
            basis,
            DONE,
            self.hashes.of_files(stage.folder),
            round(elapsed_s, 1),
            time.time(),
        )
        self.write()

    def write(self) -> None:
        """Keep all of it.

        Raises:
            EnvironmentFault: when it cannot be written.
        """
        stages = {name: asdict(made) for name, made in self.made.items()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {"stages": stages, "hashes": self.hashes.known})
        except OSError as error:
            raise EnvironmentFault(
                f"what became of the stages cannot be written down: {error.strerror}",
                where=str(self._file),
                hint="make room, and run it again: what is done is not run again",
            ) from error


def _is_free(folder: Path) -> bool:
    return not folder.is_dir() or not any(folder.iterdir()) or RunDir(folder).ended_before_training()


def _make_room(stage: Stage) -> None:
    """Move a run or an evaluation aside, and leave alone whatever else there is."""
    if _is_free(stage.folder):
        return
    _refuse_foreign(stage)
    refuse_taken(RunDir(stage.folder))  # who trains there would go on in the new folder
    say(f"moved what was there to {move_aside(stage.folder)}")


def _refuse_foreign(stage: Stage) -> None:
    if not RunDir(stage.folder).run_file.exists() and not (stage.folder / EVALUATION_FILE).exists():
        raise RecipeError(
            f"{stage.folder} holds neither a run nor an evaluation, so it is left alone",
            where=stage.recipe.where("output_dir"),
            hint="name another output_dir",
        )


def _read(file: Path) -> tuple[dict[str, Made], dict[str, list[Any]]]:
    """What became of each stage, and hashes of files; empty where nothing was kept yet.

    Raises:
        EnvironmentFault: when it is damaged.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {name: _read_made(made) for name, made in kept["stages"].items()}, dict(kept["hashes"])
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EnvironmentFault(
            f"what became of the stages cannot be read: {error}",
            where=str(file),
            hint="remove the file, and take the stages that are done with `--keep STAGE`",
        ) from error


def _read_made(kept: dict[str, Any]) -> Made:
    """What another version has kept beside is passed over: what it made is made anew, as its code is another."""
    known = {each.name for each in fields(Made)}
    return Made(**{key: value for key, value in kept.items() if key in known} | {"basis": Basis(**kept["basis"])})


def _listed(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
