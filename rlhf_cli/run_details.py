"""One run in full: how it ended, what it comes from, on what it was trained, what came out, and how to do it again."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.lineage import Ancestor, Branch, ancestry, part_of, read_record, settings_of, training_rewards
from rlhf_cli.run_dir import BEST, MANIFEST, REPORT_FILE, RunDir
from rlhf_cli.runs import Entry, duration, local_time, make_entry, mappings_in, read_evaluation, result_text, shown_path
from rlhf_cli.terminal import printable
from rlhf_cli.writing import finite

_CLOCKS = ("_runtime", "_per_second")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_INDENT = 13


@dataclass(frozen=True)
class Details:
    """What is known of one run or evaluation."""

    entry: Entry
    tree: Branch | None
    """What it comes from; None of an evaluation."""
    rewards: list[str]
    """What its model was optimised against, itself or before."""
    data: list[dict[str, Any]]
    rows: dict[str, int]
    """Trained on and held out."""
    results: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    best: str | None
    """Where the link `best` leads."""
    report: str | None
    again: str | None
    """The command line that began it."""

    def as_json(self) -> dict[str, Any]:
        """The details as a JSON object."""
        return {
            **self.entry.as_json(),
            "lineage": _tree_json(self.tree) if self.tree else None,
            "training_rewards": self.rewards,
            "data": self.data,
            "rows": self.rows,
            "results": finite(self.results),
            "checkpoints": self.checkpoints,
            "best": self.best,
            "report": self.report,
            "again": self.again,
        }

    def as_text(self, width: int | None = None) -> str:
        """The details as they are shown to a person; with a width, wrapped to it."""
        facts = [(name, text) for name, texts in self._facts() for text in texts if text]
        lines: list[str] = []
        before = None
        for name, text in facts:
            head = f"{name if name != before else '':<{_INDENT}}"
            lines += _wrapped(printable(text), head, " " * _INDENT, width)
            before = name
        if self.tree and self.tree.parents:
            lines += ["", "comes from", *_draw_tree(self.tree, width)]
        return "\n".join(lines)

    def _facts(self) -> Iterator[tuple[str, list[str]]]:
        entry = self.entry
        times = [local_time(entry.started), f"took {duration(entry.elapsed_s)}" if entry.elapsed_s else ""]
        ended = f"{entry.status}, exit code {entry.exit_code}" if entry.exit_code else entry.status
        yield "path", [shown_path(entry.folder)]
        yield "status", [", ".join(text for text in (f"{entry.kind}: {ended}", *times) if text), entry.reason or ""]
        yield "result", entry.result.get("verdicts") or [result_text(entry.result)]
        yield "data", [_source_text(each) for each in self.data]
        yield "rows", [", ".join(f"{count:,} {name}" for name, count in self.rows.items())]
        yield "rewards", [shown_reward(each) for each in self.rewards]
        yield "results", _result_texts(self.results)
        yield "checkpoints", [_checkpoint_text(each) for each in self.checkpoints]
        yield "best", [self.best or ""]
        yield "report", [self.report or ""]
        yield "again", [self.again or ""]


def describe_run(folder: Path) -> Details:
    """Gather what is known of a run or an evaluation."""
    run, entry = RunDir(folder), make_entry(folder)
    is_run = run.run_file.is_file()
    record = read_record(run) if is_run else read_evaluation(folder)
    best = folder / BEST
    return Details(
        entry=entry,
        tree=ancestry(folder) if is_run else None,
        rewards=training_rewards(folder) if is_run else [],
        data=[dict(each) for each in mappings_in(record.get("data"))],
        rows=_rows(record),
        results=results_of(record),
        checkpoints=[_measure(path) for path in run.checkpoints()],
        best=shown_path(best.resolve()) if best.is_symlink() else None,
        report=shown_path(folder / REPORT_FILE) if (folder / REPORT_FILE).is_file() else None,
        again=command_again(record),
    )


def command_again(record: Mapping[str, Any]) -> str | None:
    """What was typed, in the folder where it was typed; another output_dir or --overwrite is left to be added."""
    argv = record.get("argv")
    if not isinstance(argv, list) or len(argv) < 2:
        return None
    words = [str(word) for word in argv[1:] if word not in ("--resume", "--overwrite")]
    processes = part_of(record, "plan", "machine").get("processes", 1)
    if processes != 1 and not any(word.startswith("--num-processes") for word in words):
        words += ["--num-processes", str(processes)]
    cwd = record.get("cwd")
    enter = f"cd {shlex.quote(cwd)} && " if isinstance(cwd, str) and Path(cwd) != Path.cwd() else ""
    return f"{enter}rlhf {shlex.join(words)}"


def results_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that came out, without what a clock says: results, and those of a report card."""
    card = {name: part_of(each).get("value") for name, each in part_of(record, "report", "numbers").items()}
    found = {**part_of(record, "results"), **{f"card/{name}": value for name, value in card.items()}}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and not name.endswith(_CLOCKS)
        and name != "epoch"
    }


def _result_texts(results: Mapping[str, float]) -> list[str]:
    """Each number, with its interval where it has one."""
    shown = {name: f"{name} {value:.4g}" for name, value in results.items()}
    for name in results:
        low, high = (results.get(f"{name}_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            shown[name] += f" [{low:.4g}, {high:.4g}]"
            shown = {other: text for other, text in shown.items() if other not in (f"{name}_low", f"{name}_high")}
    return list(shown.values())


def _rows(record: Mapping[str, Any]) -> dict[str, int]:
    counts = {
        name: part_of(record, "plan", split).get("used") for name, split in (("trained", "train"), ("held out", "test"))
    }
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def _measure(checkpoint: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return {"name": checkpoint.name, "bytes": size, "complete": (checkpoint / MANIFEST).exists()}


def _checkpoint_text(checkpoint: Mapping[str, Any]) -> str:
    return f"{checkpoint['name']}, {_size(checkpoint['bytes'])}" + ("" if checkpoint["complete"] else ", incomplete")


def _size(amount: float) -> str:
    unit = 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{amount:.0f} {_UNITS[unit]}"


def _source_text(source: Mapping[str, Any]) -> str:
    text = f"{source.get('name')}: {source.get('rows')} rows as {source.get('layout')}"
    return f"{text}, sha256 {str(source['sha256'])[:16]}…" if source.get("sha256") else text


def shown_reward(name: str) -> str:
    """A reward model or function as it is shown: a path as every path."""
    return shown_path(Path(name)) if name.startswith("/") else name


# --- the tree -------------------------------------------------------------------------------------------------------


def _tree_json(branch: Branch) -> dict[str, Any]:
    ancestor = branch.ancestor
    return {
        "role": ancestor.role or None,
        "name": ancestor.name,
        "folder": str(ancestor.folder) if ancestor.folder else None,
        "run": str(ancestor.run.path) if ancestor.run else None,
        "method": ancestor.record.get("method"),
        "data": ancestor.record.get("data"),
        "note": ancestor.note or None,
        "begun_again": ancestor.begun_again,
        "told_above": branch.repeated,
        "parents": [_tree_json(parent) for parent in branch.parents],
    }


def _draw_tree(branch: Branch, width: int | None) -> list[str]:
    lines = _wrapped(_ancestor_text(branch), "", "│  " if branch.parents else "   ", width)
    for number, parent in enumerate(branch.parents, 1):
        first, rest = ("└─ ", "   ") if number == len(branch.parents) else ("├─ ", "│  ")
        room = width - 3 if width else None
        head, *others = _draw_tree(parent, room)
        lines += [first + head, *(rest + line for line in others)]
    return lines


def _ancestor_text(branch: Branch) -> str:
    ancestor = branch.ancestor
    name = shown_path(ancestor.folder) if ancestor.folder else ancestor.name
    head = f"{ancestor.role} {name}" if ancestor.role else name
    if branch.repeated:
        return printable(f"{head}, see above")
    return printable(f"{head}: {ancestor.note or _making(ancestor)}")


def _making(ancestor: Ancestor) -> str:
    """The method and its data: for a reward model, the preferences that it stands for."""
    record = ancestor.record
    data = [f"{_name_of(each)} ({each.get('rows')} rows)" for each in mappings_in(record.get("data"))]
    settings = settings_of(ancestor.run, record) if ancestor.run else {}
    functions = settings.get("reward_funcs") or []
    against = [functions] if isinstance(functions, str) else functions
    told = f"{record.get('method')} on {', '.join(data) or 'unknown data'}"
    told += f", rewarded by {', '.join(map(str, against))}" if against else ""
    return told + ("; begun again since, so it may be another" if ancestor.begun_again else "")


def _name_of(source: Mapping[str, Any]) -> str:
    name = str(source.get("name"))
    return shown_path(Path(name)) if name.startswith("/") else name


def _wrapped(text: str, first: str, rest: str, width: int | None) -> list[str]:
    if width is None:
        return [first + text]
    return textwrap.wrap(
        text, max(width, 40), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    ) or [first]  # fmt: skip
