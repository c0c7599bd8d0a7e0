"""The run folder: every file name in it, written and read here.

A checkpoint counts when its manifest does: the names, sizes and hashes of its files, written last and by rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlhf_cli.errors import EnvironmentFault, RecipeError
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import hide, hide_in, hide_yaml
from rlhf_cli.writing import file_hash, write_json, write_text

MANIFEST = "manifest.json"
EVALUATION_FILE, ANSWERS_FILE, REPORT_FILE = "eval.json", "answers.jsonl", "report.html"
BEST = "best"
"""In a run folder, what links to the checkpoint to ship."""
RANK_LOG = "RLHF_RANK_LOG"
"""The variable that names the file a process other than the first talks to, until there is a run folder."""


@dataclass(frozen=True)
class RunDir:
    """The files of one run, all below its `output_dir`."""

    path: Path
    secrets: tuple[str, ...] = ()
    """Texts that are left out of all that is written."""

    @property
    def own(self) -> Path:
        """The folder for what is ours, beside what TRL and the Hub expect."""
        return self.path / "rlhf"

    @property
    def recipe_file(self) -> Path:
        """The recipe as it was given."""
        return self.own / "recipe.yaml"

    @property
    def resolved_file(self) -> Path:
        """Every setting that was not left to TRL, after inheritance, overrides and decisions."""
        return self.own / "resolved.json"

    @property
    def run_file(self) -> Path:
        """Status, command, versions, data, exit code."""
        return self.own / "run.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line, one line a log event."""
        return self.own / "metrics.jsonl"

    @property
    def trained_prompts_file(self) -> Path:
        """Hashes of the prompts that were trained on: sorted, each once, uint64."""
        return self.own / "trained_on.npy"

    @property
    def crash_file(self) -> Path:
        """The traceback of a run that failed."""
        return self.own / "crash.txt"

    @property
    def lock_file(self) -> Path:
        """Locked while a process trains here."""
        return self.own / "lock"

    def is_held(self) -> bool:
        """Whether a process trains here; not to be asked by that process itself, which would lose its lock."""
        try:
            with self.lock_file.open(encoding="utf-8") as file:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False
        return False

    def samples_file(self, step: int) -> Path:
        """Answers to the held-out prompts after a step."""
        return self.own / "samples" / f"step-{step}.parquet"

    def rank_log(self, rank: int) -> Path:
        """What a process other than the first has said."""
        return self.own / "logs" / f"rank-{rank}.log"

    @property
    def set_aside(self) -> Path:
        """Where incomplete checkpoints go."""
        return self.own / "incomplete"

    def reference_folder(self, model: str, rows: str, split: str) -> Path:
        """Log-probabilities of a split under a reference, both named by their hashes."""
        return self.own / f"reference-{split}-{model[:12]}-{rows[:12]}"

    def member(self, number: int) -> RunDir:
        """The folder of a member of an ensemble, from the second on."""
        return RunDir(self.path / "members" / str(number), self.secrets)

    @property
    def reward_card(self) -> Path:
        """What a reward model is, and how good."""
        return self.path / "reward_card.json"

    @property
    def stored_answers(self) -> Path:
        """Some held-out answers and their scores, to measure a reward model's scale by."""
        return self.own / "held_out.jsonl"

    # --- run.json ---

    def read_run(self) -> dict[str, Any]:
        """What run.json says; empty where there is none, or it is damaged."""
        try:
            return dict(json.loads(self.run_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return {}

    def update_run(self, **facts: Any) -> None:
        """Add facts to run.json."""
        write_json(self.run_file, hide_in({**self.read_run(), **facts}, self.secrets))

    def write_crash(self, text: str) -> None:
        """Keep the traceback of a run that failed."""
        write_text(self.crash_file, hide(text, self.secrets))

    def ended_before_training(self) -> bool:
        """Whether all there is is the record, or its beginnings, of a run that ended before it logged anything."""
        names = {path.name for path in self.path.iterdir()}
        return (
            names == {self.own.name}
            and self.read_run().get("status") in (None, "failed", "stopped")
            and not self.metrics_file.exists()
        )

    # --- checkpoints ---

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        found = [
            path
            for path in self.path.glob("checkpoint-*")
            if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()
        ]
        return sorted(found, key=step_of, reverse=True)

    def complete_checkpoints(self) -> list[Path]:
        """Those that were written to their end, newest first."""
        return [path for path in self.checkpoints() if (path / MANIFEST).exists()]

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that can be resumed from; incomplete ones are set aside.

        Raises:
            EnvironmentFault: when a checkpoint that was complete has lost or changed a file.
        """
        for checkpoint in self.checkpoints():
            manifest = checkpoint / MANIFEST
            if manifest.exists():
                _verify(checkpoint, json.loads(manifest.read_text(encoding="utf-8")))
                return checkpoint
            self.set_aside.mkdir(parents=True, exist_ok=True)
            target = _free_name(self.set_aside / checkpoint.name)
            checkpoint.rename(target)
        return None

    def cut_metrics(self, checkpoint: Path | None) -> None:
        """Forget what was logged after a checkpoint, or at all, since it will be logged again."""
        if not self.metrics_file.exists():
            return
        step, kept = step_of(checkpoint) if checkpoint else 0, []
        at_step = _logged_at(checkpoint, step) if checkpoint else 0
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or (here := json.loads(line).get("step", 0)) > step:
                continue
            if here < step or at_step > 0:
                kept.append(line)
                at_step -= here == step
        write_text(self.metrics_file, "".join(kept))


def output_dir_of(recipe: Recipe) -> Path:
    """Where the recipe's run goes: named in it, or named after it."""
    return Path(os.path.expanduser(recipe["output_dir"] or f"runs/{recipe.path.stem}"))


def refuse_unusable(run: RunDir, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a run cannot have.

    Args:
        run: The folder, which may not exist yet.
        recipe: For the line to blame.
        resume: Go on with the run that is there.
        overwrite: Move the run that is there aside, to `NAME.old-1`; nothing is deleted.

    Raises:
        RecipeError: when the folder cannot be used as it is asked to be.
        EnvironmentFault: when it cannot be written to.
    """
    refuse_unwritable(run, recipe)
    output_dir = run.path
    occupied = output_dir.is_dir() and any(output_dir.iterdir()) and not run.ended_before_training()
    if occupied and overwrite:
        if not run.run_file.exists():
            raise _refusal(
                recipe,
                f"output_dir `{output_dir}` holds no run, so --overwrite leaves it alone",
                "name another folder",
            )
    elif occupied and resume:
        if not run.run_file.exists():
            raise _refusal(recipe, f"output_dir `{output_dir}` holds no run to resume", "name the run's folder")
    elif occupied:
        raise _refusal(
            recipe,
            f"output_dir `{output_dir}` is not empty",
            "--resume goes on with the run there, --overwrite moves it aside, or name another folder",
        )


def refuse_unwritable(run: RunDir, recipe: Recipe) -> None:
    """Refuse a folder that is none, that another process trains in, or that cannot be written to.

    Raises:
        RecipeError: when it is a file, or taken.
        EnvironmentFault: when it cannot be written to.
    """
    output_dir = run.path
    if output_dir.exists() and not output_dir.is_dir():
        raise _refusal(recipe, f"output_dir `{output_dir}` is a file", "name a folder")
    refuse_taken(run)
    parent = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.is_dir())
    if not os.access(parent, os.W_OK):
        raise EnvironmentFault(
            f"cannot write to output_dir `{output_dir}`: no permission in {parent}",
            where=recipe.where("output_dir"),
        )


def take_run_dir(run: RunDir, recipe: Recipe, *, overwrite: bool) -> IO[str]:
    """Make the folder, or take over the one that is there, and keep every other run out of it.

    Returns:
        What holds the folder, until it is closed or the process ends.

    Raises:
        RecipeError: when another process trains there.
        EnvironmentFault: when the folder cannot be made.
    """
    if overwrite and run.run_file.exists():
        move_aside(run.path)
    try:
        run.own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot make output_dir `{run.path}`: {error.strerror}", where=recipe.where("output_dir")
        ) from None
    return lock(run)


def move_aside(folder: Path) -> Path:
    """Rename a folder to `NAME.old-1`, or the next number that is free; nothing is deleted."""
    return folder.rename(_free_name(folder.with_name(folder.name + ".old")))


def refuse_taken(run: RunDir) -> None:
    """Refuse a folder in which another process trains.

    Raises:
        RecipeError: naming the process.
    """
    if run.lock_file.exists() and os.access(run.lock_file, os.W_OK):
        _acquire(run).close()


def lock(run: RunDir) -> IO[str]:
    """Keep other runs out of a folder, until this process ends, however that is, or the file is closed."""
    file = _acquire(run)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _acquire(run: RunDir) -> IO[str]:
    # A POSIX lock: workers do not inherit it, and it works on NFS.
    file = run.lock_file.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise RecipeError(
            f"another run is training in `{run.path}`" + (f": {owner}" if owner else ""),
            hint="wait for it, stop it, or name another output_dir",
        ) from None
    return file


def move_rank_log(run: RunDir) -> None:
    """From here on, let a process that talks to a temporary file talk to one in the run folder."""
    if RANK_LOG not in os.environ:
        return
    before = Path(os.environ[RANK_LOG])
    target = run.rank_log(int(os.environ["RANK"]))
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        file.write(before.read_bytes())
        file.flush()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    before.with_suffix(".moved").write_text(str(target.absolute()), encoding="utf-8")


def moved_to(log: Path) -> Path | None:
    """The file in the run folder that a temporary one was given up for."""
    note = log.with_suffix(".moved")
    return Path(note.read_text(encoding="utf-8")) if note.exists() else None


def write_recipe(run: RunDir, recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """Write down what is about to run."""
    written = recipe.text or recipe.path.read_text(encoding="utf-8-sig")
    text = hide(hide_yaml(written), run.secrets)
    write_text(run.recipe_file, text)
    write_json(run.resolved_file, hide_in(settings, run.secrets))


def write_manifest(checkpoint: Path, *, resumable: bool) -> None:
    """Declare a checkpoint complete: its files with size and hash, written by rename.

    Args:
        checkpoint: The folder, with all its files.
        resumable: Whether the state of optimizer, schedule and random numbers is among them, and not the model alone.
    """
    files = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(checkpoint / MANIFEST, {"resumable": resumable, "files": files})


def _verify(checkpoint: Path, manifest: Mapping[str, Any]) -> None:
    for name, facts in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            fault = "is missing"
        elif path.stat().st_size != facts["bytes"]:
            fault = f"has {path.stat().st_size} bytes instead of {facts['bytes']}"
        elif file_hash(path) != facts["sha256"]:
            fault = "was changed after it was written"
        else:
            continue
        raise EnvironmentFault(
            f"{checkpoint.name}/{name} {fault}",
            where=str(checkpoint.parent),
            hint=f"restore the file, or remove {checkpoint} to go on from the checkpoint before it",
        )
    if not manifest.get("resumable"):
        raise EnvironmentFault(
            f"{checkpoint.name} holds no optimizer state, so going on from it would train other weights",
            where=str(checkpoint.parent),
            hint="checkpoints written with `save_only_model: true` cannot be resumed",
        )


def _logged_at(checkpoint: Path, step: int) -> int:
    """How often something was logged at the step of a checkpoint before it was written."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return sum(entry.get("step") == step for entry in state["log_history"])


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _free_name(path: Path) -> Path:
    numbers = iter(range(1, 10_000))
    return next(name for n in numbers if not (name := path.with_name(f"{path.name}-{n}")).exists())


def _refusal(recipe: Recipe, what: str, hint: str) -> RecipeError:
    return RecipeError(what, where=recipe.where("output_dir"), hint=hint)
