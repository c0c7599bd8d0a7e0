"""The end of every page: recipe, data, environment, files, and the command that does it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.report.page import Cell, Table
from rlhf_cli.report.wording import cut, is_number, number, setting, size
from rlhf_cli.run_dir import REPORT_FILE

_MOST_FILES = 60
_COUNTS = {
    "read": "rows read", "bad": "bad, left out", "masked": "without loss or too long, left out", "used": "used",
    "truncated": "of them truncated", "examples": "examples", "tokens": "tokens", "loss_tokens": "tokens with loss",
    "longest": "longest, in tokens",
}  # fmt: skip


def recipe_tables(
    settings: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], decisions: Mapping[str, Any]
) -> list[Table]:
    """What was set, what the machine decided, and the defaults of all else.

    Args:
        settings: Every setting that was not left to TRL.
        known: Every key a recipe may have, as JSON Schema.
        decisions: Values for keys that the recipe leaves out, and why.
    """
    given = [
        [_name(key, known), _value(value, changed=value != known.get(key, {}).get("default")), _default(known.get(key))]
        for key, value in sorted(settings.items())
        if key not in decisions
    ]
    decided = [
        [_name(key, known), _value(each.get("value"), changed=True), Cell(str(each.get("reason", "")))]
        for key, each in sorted(decisions.items())
        if isinstance(each, Mapping)
    ]
    silent = [
        [
            _name(key, known),
            _value(schema.get("default"), changed=False),
            Cell(cut(str(schema.get("description", "")), 160)),
        ]
        for key, schema in sorted(known.items())
        if key not in settings and "default" in schema
    ]
    tables = [
        Table(given, ["setting", "value", "default"], "In the recipe"),
        Table(decided, ["setting", "value", "because"], "Decided for this machine"),
        Table(silent, ["setting", "default", "what it is"], f"Left at its default ({len(silent)})", folded=True),
    ]
    return [table for table in tables if table.rows]


def _name(key: str, known: Mapping[str, Mapping[str, Any]]) -> Cell:
    return Cell(key, title=str(known.get(key, {}).get("description", "")), code=True)


def _value(value: Any, *, changed: bool) -> Cell:
    text = setting(value)
    return Cell(cut(text, 400), title=text if len(text) > 400 else "", strong=changed, code=True)


def _default(schema: Mapping[str, Any] | None) -> Cell:
    return Cell(cut(setting(schema["default"]), 60), code=True) if schema and "default" in schema else Cell("–")


def data_tables(sources: Any, plan: Mapping[str, Any]) -> list[Table]:
    """What was read, with hashes, and what became of the rows."""
    rows = [
        [
            Cell(str(source.get("name", ""))),
            Cell(str(source.get("layout", ""))),
            Cell(number(source.get("rows"))),
            Cell(cut(str(source.get("sha256") or "–"), 17), title=str(source.get("sha256") or ""), code=True),
        ]
        for source in sources or []
        if isinstance(source, Mapping)
    ]
    splits = {
        name: plan.get(split) for name, split in (("trained on", "train"), ("held out", "test")) if plan.get(split)
    }
    counts = [
        [Cell(label), *(Cell(number(each.get(key))) for each in splits.values())]  # type: ignore[union-attr]
        for key, label in _COUNTS.items()
        if any(is_number(each.get(key)) for each in splits.values())  # type: ignore[union-attr]
    ]
    tables = [
        Table(rows, ["file or dataset", "layout", "rows", "sha256"], "What was read"),
        Table(counts, ["", *splits], "What became of it", numeric=True),
    ]
    return [table for table in tables if table.rows]


def environment_table(environment: Any, machine: Any, seed: Any = None) -> Table:
    """Versions, machine, seed."""
    rows = [[Cell(str(name)), Cell(str(value), code=True)] for name, value in (environment or {}).items() if value]
    if isinstance(machine, Mapping) and machine:
        what = f"{machine.get('processes', 1)} × {machine.get('device')} ({machine.get('name')})"
        rows.append(
            [
                Cell("machine"),
                Cell(f"{what}, {number(machine.get('memory_gib'))} GiB, {machine.get('threads')} threads"),
            ]
        )
    if seed is not None:
        rows.append([Cell("seed"), Cell(str(seed), code=True)])
    return Table(rows, title="Environment")


def file_table(folder: Path) -> Table:
    """The files of the folder, with their sizes; of a checkpoint the sum."""
    found: list[tuple[str, int]] = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir() and path.name.startswith("checkpoint-"):
            found.append((f"{path.name}/", sum(each.stat().st_size for each in path.rglob("*") if each.is_file())))
        elif path.is_dir():
            found += [
                (str(each.relative_to(folder)), each.stat().st_size)
                for each in sorted(path.rglob("*"))
                if each.is_file()
            ]
        elif not path.name.startswith(".") and path.name != REPORT_FILE:
            found.append((path.name, path.stat().st_size))
    rows = [[Cell(name, code=True), Cell(size(count))] for name, count in found[:_MOST_FILES]]
    left = f"{len(found) - _MOST_FILES} more are not listed." if len(found) > _MOST_FILES else ""
    return Table(rows, ["file", "size"], "Files", left, folded=True, numeric=True)
