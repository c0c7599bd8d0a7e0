"""The runs and evaluations below a folder: which there are, how they ended, and the number that matters of each."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_cli.errors import GateError, RecipeError
from rlhf_cli.lineage import part_of, read_record, run_of
from rlhf_cli.run_dir import EVALUATION_FILE, RunDir
from rlhf_cli.terminal import printable
from rlhf_cli.writing import finite

_NUMBERS = (
    ("eval_gain", "gain"), ("eval_reward", "reward"), ("eval_rewards/accuracies", "accuracy"),
    ("eval_accuracy", "accuracy"), ("eval_loss", "loss"),
)  # fmt: skip
"""Results by how much they matter, and their names for people."""
_NOT_ENTERED = re.compile(r"\..*|checkpoint-\d+|node_modules|__pycache__")
_TAIL = 4096
"""Bytes at the end of metrics.jsonl among which the last line is looked for."""
_SUGGESTED = 3


@dataclass(frozen=True)
class Entry:
    """A run or an evaluation, as it is listed."""

    folder: Path
    kind: str
    """The method, or what an evaluation is called."""
    status: str
    """done, stopped, failed, running; died, where it says running and no process is; damaged."""
    exit_code: int | None = None
    reason: str | None = None
    started: float | None = None
    """Seconds since 1970; of an evaluation, when it was written."""
    elapsed_s: float | None = None
    """Of the last call, where a run was resumed."""
    result: dict[str, Any] = field(default_factory=dict)
    """`name`, `value` and the ends of its interval; of an evaluation of policies, `verdicts`; else how far it is."""

    def as_json(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {
            "path": shown_path(self.folder),
            "kind": self.kind,
            "status": self.status,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "started": datetime.fromtimestamp(self.started).astimezone().isoformat() if self.started else None,
            "elapsed_s": self.elapsed_s,
            "result": finite(self.result),
        }

    def cells(self) -> list[str]:
        """What a line says of it."""
        code = f" ({self.exit_code})" if self.exit_code else ""
        facts = [self.kind, self.status + code, local_time(self.started), duration(self.elapsed_s)]
        return [printable(text) for text in (shown_path(self.folder), *facts, result_text(self.result))]


# --- the list -------------------------------------------------------------------------------------------------------


def list_runs(folder: Path) -> list[Entry]:
    """All runs and evaluations in a folder and below, newest first.

    Raises:
        RecipeError: when there is no such folder.
    """
    if not folder.is_dir():
        what = f"`{folder}` is a file" if folder.exists() else f"there is no folder `{folder}`"
        raise RecipeError(what, hint=_similar(folder))
    entries = [make_entry(path) for path in find_runs(folder)]
    return sorted(entries, key=lambda entry: (-(entry.started or 0), str(entry.folder)))


def draw_list(entries: Sequence[Entry], width: int | None = None) -> str:
    """Runs as a table, or, where that is wider than `width`, as paragraphs."""
    rows = [entry.cells() for entry in entries]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows
    ]  # fmt: skip
    if width is None or all(len(line) <= width for line in lines):
        return "\n".join(lines)
    return "\n".join(_paragraph(row, width) for row in rows)


def _paragraph(cells: Sequence[str], width: int) -> str:
    path, *facts = cells
    shown = path if len(path) <= width else "…" + path[1 - width :]
    text = " · ".join(fact for fact in facts if fact)
    return "\n".join([shown, *textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")])


def find_runs(folder: Path) -> Iterator[Path]:
    """Folders of runs and evaluations; checkpoints and members of an ensemble are parts of a run."""
    for root, folders, files in os.walk(folder):
        path = Path(root)
        is_run = "rlhf" in folders and RunDir(path).run_file.is_file()
        if is_run or (EVALUATION_FILE in files and is_evaluation(path)):
            yield path
        inside = {"rlhf", "members"} if is_run else set()
        folders[:] = sorted(name for name in folders if not _NOT_ENTERED.fullmatch(name) and name not in inside)


# --- one of them ----------------------------------------------------------------------------------------------------


def make_entry(folder: Path) -> Entry:
    """What is listed of a run or an evaluation."""
    run = RunDir(folder)
    if not run.run_file.is_file():
        return _make_evaluation(folder)
    record = read_record(run)
    if not isinstance(record.get("status"), str):
        return Entry(folder, "?", "damaged", started=run.run_file.stat().st_mtime)
    status, code = record["status"], record.get("exit_code")
    if status == "running" and not run.is_held():
        status = "died"
    return Entry(
        folder,
        str(record.get("method") or "?"),
        status,
        code if isinstance(code, int) else None,
        str(record["reason"]) if record.get("reason") else None,
        _number(record.get("started")),
        None if status in ("running", "died") else _number(record.get("elapsed_s")),
        main_result(record) if status == "done" else _progress(run, record),
    )


def _make_evaluation(folder: Path) -> Entry:
    file = folder / EVALUATION_FILE
    found, written = read_evaluation(folder), file.stat().st_mtime
    if not found:
        return Entry(folder, "eval", "damaged", started=written)
    verdicts = [str(each.get("sentence")) for each in mappings_in(found.get("verdicts"))]
    result = {"verdicts": verdicts} if verdicts else main_result(found)
    failed = part_of(found, "report").get("failed_gates") or [
        gate for gate in mappings_in(found.get("gates")) if not gate.get("met")
    ]
    code = GateError.exit_code if failed else 0
    return Entry(folder, "eval", "done", exit_code=code, started=written, result=result)


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What an evaluation found; empty where there is none, or it is damaged."""
    try:
        return dict(json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def is_evaluation(folder: Path) -> bool:
    """Whether it holds an evaluation, damaged or not, and no other file of that name."""
    found = read_evaluation(folder)
    return (folder / EVALUATION_FILE).is_file() and (not found or "report" in found or "verdicts" in found)


def main_result(record: Mapping[str, Any]) -> dict[str, Any]:
    """The number that matters: accuracy on the report card of a reward model, else the first of the results."""
    accuracy = part_of(record, "report", "numbers", "accuracy")
    if accuracy:
        return {"name": "accuracy", **{key: accuracy.get(key) for key in ("value", "ci_low", "ci_high")}}
    results = part_of(record, "results")
    for key, name in _NUMBERS:
        if (value := _number(results.get(key))) is not None:
            low, high = results.get(f"{key}_low"), results.get(f"{key}_high")
            return {"name": name, "value": value, "ci_low": low, "ci_high": high}
    return {}


def result_text(result: Mapping[str, Any]) -> str:
    """A result as it is shown to a person."""
    if "verdicts" in result:
        return "; ".join(result["verdicts"])
    value, low, high = (_number(result.get(key)) for key in ("value", "ci_low", "ci_high"))
    if value is None:
        return ""
    if "of" in result:
        return f"{result['name']} {value:,} of {result['of']:,}"
    return f"{result['name']} {value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def _progress(run: RunDir, record: Mapping[str, Any]) -> dict[str, Any]:
    """How many steps are logged of a run that has not ended well."""
    steps = part_of(record, "plan").get("steps")
    try:
        with run.metrics_file.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
        step = json.loads(lines[-1])["step"] if lines else 0
    except (OSError, ValueError, TypeError, KeyError):
        step = 0
    return {"name": "step", "value": step, "of": steps} if isinstance(steps, int) else {}


# --- the one that is meant ------------------------------------------------------------------------------------------


def choose_run(name: Path) -> Path:
    """The folder of the run or evaluation that is meant; of a checkpoint, its run.

    Raises:
        RecipeError: when there is none, naming the nearest.
    """
    if is_evaluation(name) and not RunDir(name).run_file.is_file():
        return name
    run = run_of(name)
    if run is not None:
        return name if RunDir(name).run_file.is_file() else run.path
    if not name.exists():
        raise RecipeError(f"there is no folder `{name}`", hint=_similar(name))
    below = [shown_path(path) for path, _ in zip(find_runs(name), range(_SUGGESTED + 1), strict=False)]
    named = f"runs in it: {_first(below)}" if below else _similar(name)
    raise RecipeError(f"`{name}` is no run folder: it holds no rlhf/run.json", hint=named)


def _similar(wanted: Path) -> str:
    from rapidfuzz import fuzz, process

    near = next(folder for folder in (*wanted.parents, Path.cwd()) if folder.is_dir())
    there = [shown_path(path) for path in find_runs(near)]
    if not there:
        return f"there are no runs below {shown_path(near)}"
    best = process.extract(str(wanted), there, scorer=fuzz.WRatio, limit=_SUGGESTED, score_cutoff=80)
    return f"did you mean `{best[0][0]}`?" if best else f"there are {_first(there)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SUGGESTED]) + (", …" if len(names) > _SUGGESTED else "")


# --- for people -----------------------------------------------------------------------------------------------------


def shown_path(path: Path) -> str:
    """A path, relative where it is below the current folder."""
    here, there = Path.cwd(), Path(os.path.abspath(path))
    return str(there.relative_to(here)) if there.is_relative_to(here) else str(there)


def local_time(seconds: float | None) -> str:
    """A moment on this machine's clock."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}" if seconds else ""


def duration(seconds: float | None) -> str:
    """How long something took."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def mappings_in(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list; nothing where it is none."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
