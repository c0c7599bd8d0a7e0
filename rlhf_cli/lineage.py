"""Where a model comes from: the runs before its own, the rewards it learnt from, and the prompts it has seen."""

from __future__ import annotations

import glob
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.model_source import ADAPTER_CONFIG
from rlhf_cli.rows import BadRow, Row, prompt_hash, prompt_of
from rlhf_cli.run_dir import RunDir
from rlhf_cli.writing import write_bytes

MODEL, BASE, REWARD = "model", "base", "reward"
_NAMING = {"model_name_or_path": MODEL, "reward_model_path": REWARD}
"""Recipe keys that name models, and what the model is to the run."""
_OF_THE_HUB = "of the Hub"
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class Ancestor:
    """A model that another was made from, or with."""

    role: str
    """`MODEL`, `BASE` (below an adapter), `REWARD`; empty for the model that was asked about."""
    name: str
    """As the run or the adapter names it."""
    folder: Path | None = None
    """Where it is; None where it is not here."""
    run: RunDir | None = None
    """What made it, where that is known."""
    record: dict[str, Any] = field(default_factory=dict)
    """What run.json says; empty where it is damaged, or there is no run."""
    note: str = ""
    """Why nothing more is known of it."""
    begun_again: bool = False
    """Whether it was begun again since it was taken, so that another model may be there now."""


@dataclass(frozen=True)
class Branch:
    """A model, and what it comes from."""

    ancestor: Ancestor
    parents: tuple[Branch, ...] = ()
    repeated: bool = False
    """Whether its parents are told elsewhere in the tree: above, or where the tree would bite its tail."""

    def walk(self) -> Iterator[Branch]:
        """This branch and all behind it, nearest first on each."""
        yield self
        for parent in self.parents:
            yield from parent.walk()


@dataclass(frozen=True)
class TrainedPrompts:
    """Prompts that a model, what it was made from, and the rewards it learnt from were trained on."""

    hashes: NDArray[np.uint64]
    """`rows.prompt_hash` of each: sorted, each once."""
    unknown: tuple[str, ...]
    """Ancestors of which it is not known. A base model is not among them, since what it has read is not asked."""

    def count(self, rows: Iterable[Row]) -> int:
        """How many of these rows have a prompt that was trained on."""
        asked = np.fromiter((prompt_hash(row) for row in rows), dtype=np.uint64)
        return int((np.isin(asked, self.hashes) & (asked != 0)).sum())


def run_of(folder: Path | str) -> RunDir | None:
    """The run that a folder belongs to: its own, or that of which it is a checkpoint or a member."""
    path = Path(os.path.expanduser(folder)).resolve()
    if path.parent.name == "members" and (above := run_of(path.parent.parent)):
        return above
    run = RunDir(path)
    if run.run_file.is_file():
        return run
    return run_of(path.parent) if _CHECKPOINT.fullmatch(path.name) else None


def read_record(run: RunDir) -> dict[str, Any]:
    """What run.json says; empty where it cannot be read."""
    try:
        return run.read_run()
    except OSError:
        return {}


def part_of(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A mapping inside a record; empty where it is not there, or something else is."""
    found: Any = record
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def settings_of(run: RunDir, record: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a run that was not left to TRL."""
    try:
        return dict(json.loads(run.resolved_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return part_of(record, "plan", "settings")


# --- what it comes from ---------------------------------------------------------------------------------------------


def parents_of(folder: Path | str) -> tuple[Ancestor, ...]:
    """What the model in a folder was made from, and with: models first, then rewards; nothing where that is not known.

    Args:
        folder: A run folder, a checkpoint in one, or the folder of an adapter, whose base it names.
    """
    run = run_of(folder)
    if run is None:
        base = _base_below(Path(os.path.expanduser(folder)))
        return (_ancestor(BASE, base, (Path.cwd(),)),) if base else ()
    record = read_record(run)
    settings, roots = settings_of(run, record), _roots(run, record)
    named = (
        Ancestor(role, name, note=_OF_THE_HUB)
        if role == MODEL and _was_of_the_hub(record)
        else _ancestor(role, name, roots)
        for key, role in _NAMING.items()
        for name in _as_list(settings.get(key))
    )
    began = record.get("started")
    return tuple(_at_the_time(each, began) if isinstance(began, float) else each for each in named)


def ancestry(folder: Path | str) -> Branch:
    """The tree of all that the model in a folder comes from; each run is followed once."""
    return _grow(_ancestor("", str(folder), (Path.cwd(),)), set())


def _grow(ancestor: Ancestor, seen: set[Path]) -> Branch:
    if ancestor.folder is None:
        return Branch(ancestor)
    place = ancestor.run.path if ancestor.run else ancestor.folder
    if place in seen:
        return Branch(ancestor, repeated=True)
    seen.add(place)
    return Branch(ancestor, tuple(_grow(parent, seen) for parent in parents_of(ancestor.folder)))


def _ancestor(role: str, name: str, roots: Iterable[Path]) -> Ancestor:
    folder = _locate(name, roots)
    if folder is None:
        return Ancestor(role, name, note="its folder is gone" if _is_local(name) else "not here: of the Hub, or gone")
    run = run_of(folder)
    if run is None:
        return Ancestor(role, name, folder, note="made by no run here")
    record = read_record(run)
    return Ancestor(role, name, folder, run, record, "" if record else f"{run.run_file.name} is damaged")


def _is_local(name: str) -> bool:
    """Whether a name can only be one of a folder."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _at_the_time(ancestor: Ancestor, began: float) -> Ancestor:
    """The run that was there when another began: since then `--overwrite` may have moved it aside, to `NAME.old-1`."""
    run, folder = ancestor.run, ancestor.folder
    if run is None or folder is None or _started(ancestor.record) <= began:
        return ancestor
    aside = [RunDir(path) for path in run.path.parent.glob(f"{glob.escape(run.path.name)}.old-*")]
    records = [(_started(record), old, record) for old in aside if (record := read_record(old))]
    before = [each for each in records if each[0] <= began]
    if not before:
        return replace(ancestor, begun_again=True)
    _, old, record = max(before, key=lambda each: each[0])
    return replace(ancestor, folder=old.path / folder.relative_to(run.path), run=old, record=record)


def _started(record: Mapping[str, Any]) -> float:
    started = record.get("started")
    return started if isinstance(started, float) else 0.0


def _was_of_the_hub(record: Mapping[str, Any]) -> bool:
    """Whether the model was no folder when the run began: of a folder it is known what it holds."""
    model = part_of(record, "model")
    return bool(model) and model.get("holds") is None and not model.get("adapter")


def _base_below(folder: Path) -> str | None:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return config.get("base_model_name_or_path") or None
    except (OSError, ValueError, AttributeError):
        return None


def _locate(name: str, roots: Iterable[Path]) -> Path | None:
    """The folder of this name, or of a checkpoint that its run has dropped since; relative ones are sought in turn."""
    paths = [root / Path(os.path.expanduser(name)) for root in roots]
    return next((path.resolve() for path in paths if path.is_dir() or run_of(path)), None)


def _roots(run: RunDir, record: Mapping[str, Any]) -> tuple[Path, ...]:
    """What a run's relative paths are relative to: where it was started, which may have been moved, or here."""
    output = Path(os.path.expanduser(str(part_of(record, "plan").get("output_dir") or "/")))
    moved = [] if output.is_absolute() else [run.path.absolute().parents[len(output.parts) - 1]]
    begun = [Path(record["cwd"])] if isinstance(record.get("cwd"), str) else []
    return (*begun, *moved, Path.cwd())


def _as_list(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


# --- what it was trained against, and on ----------------------------------------------------------------------------


def training_rewards(folder: Path | str) -> list[str]:
    """The rewards that a model was optimised against, itself or as what it was made from; nearest first.

    Returns:
        Absolute folders, ids of the Hub, and functions as `/absolute/file.py:function` or `package.module:function`.
    """
    found: dict[str, None] = {}
    for branch in _line_of_models(ancestry(folder)):
        run, record = branch.ancestor.run, branch.ancestor.record
        if run is None:
            continue
        roots, functions = _roots(run, record), _as_list(settings_of(run, record).get("reward_funcs"))
        models = [parent.ancestor for parent in branch.parents if parent.ancestor.role == REWARD]
        found |= dict.fromkeys(_absolute(model, roots) for model in models)
        found |= dict.fromkeys(_absolute_function(name, roots) for name in functions)
    return list(found)


def _line_of_models(branch: Branch) -> Iterator[Branch]:
    """A model and those its weights went through, without its rewards and theirs."""
    yield branch
    for parent in branch.parents:
        if parent.ancestor.role != REWARD:
            yield from _line_of_models(parent)


def _absolute(model: Ancestor, roots: tuple[Path, ...]) -> str:
    if model.folder is not None:
        return str(model.folder)
    return os.path.normpath(roots[0] / Path(os.path.expanduser(model.name))) if _is_local(model.name) else model.name


def _absolute_function(reference: str, roots: tuple[Path, ...]) -> str:
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        return reference
    path = Path(os.path.expanduser(place))
    file = next((root / path for root in roots if (root / path).is_file()), roots[0] / path)
    return f"{os.path.normpath(file)}:{name}"


def trained_prompts(folder: Path | str) -> TrainedPrompts:
    """The prompts that a model, all it was made from, and the rewards it learnt from were trained on."""
    found = [np.zeros(0, dtype=np.uint64)]
    unknown: dict[str, None] = {}
    for branch in ancestry(folder).walk():
        ancestor = branch.ancestor
        if branch.repeated or _has_only_read(ancestor):
            continue
        hashes = _read_prompts(ancestor.run) if ancestor.run else None
        if hashes is None:
            unknown[ancestor.name] = None
        else:
            found.append(hashes)
    return TrainedPrompts(np.unique(np.concatenate(found)), tuple(unknown))


def own_prompts(folder: Path | str) -> TrainedPrompts | None:
    """The prompts that a model's own run was trained on; None where no run tells."""
    run = run_of(folder)
    hashes = _read_prompts(run) if run else None
    return None if hashes is None else TrainedPrompts(hashes, ())


def _has_only_read(ancestor: Ancestor) -> bool:
    """Whether it is taken for a base model: made by no run, no adapter, no reward model, and not simply gone."""
    if ancestor.run is not None or ancestor.role == REWARD:
        return False
    if ancestor.folder is not None:
        return not (ancestor.folder / ADAPTER_CONFIG).exists()
    return ancestor.note == _OF_THE_HUB or (ancestor.role != MODEL and not _is_local(ancestor.name))


def _read_prompts(run: RunDir) -> NDArray[np.uint64] | None:
    try:
        found = np.load(run.trained_prompts_file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.uint64 and found.ndim == 1 else None


def write_trained_prompts(run: RunDir, rows: Iterable[Row]) -> None:
    """Keep hashes of the prompts of the rows that a run trains on."""
    hashes = {each for row in rows for each in _asked_in(row)} - {0}
    content = io.BytesIO()
    np.save(content, np.array(sorted(hashes), dtype=np.uint64), allow_pickle=False)
    write_bytes(run.trained_prompts_file, content.getvalue())


def _asked_in(row: Row) -> Iterator[int]:
    """A conversation answers its first question and its last, and either may be asked again elsewhere."""
    yield prompt_hash(row)
    if "messages" in row:
        with suppress(BadRow):
            yield prompt_hash(prompt_of(row))
