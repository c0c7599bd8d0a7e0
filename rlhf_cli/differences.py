"""What two runs differ in: settings, versions, data, and what came out of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.lineage import part_of, read_record, settings_of
from rlhf_cli.run_details import results_of
from rlhf_cli.run_dir import RunDir
from rlhf_cli.runs import mappings_in, read_evaluation, shown_path
from rlhf_cli.terminal import printable
from rlhf_cli.writing import finite

UNSET = "unset"
_OWN_KEYS = ("output_dir",)
"""Keys that say which run it is."""

Sides = dict[str, dict[str, Any]]
"""By name, the value in `a` and in `b`; a side that has none is left out."""


@dataclass(frozen=True)
class Differences:
    """What two runs differ in."""

    a: str
    b: str
    settings: Sides
    versions: Sides
    data: Sides
    """By file, its hash; and the tokens and the weights a run began with."""
    results: Sides
    """All of them, equal or not."""

    @property
    def any(self) -> bool:
        """Whether there is one."""
        results = any(sides.get("a") != sides.get("b") for sides in self.results.values())
        return bool(self.settings or self.versions or self.data or results)

    def as_json(self) -> dict[str, Any]:
        """The differences as a JSON object."""
        parts = {"settings": self.settings, "versions": self.versions, "data": self.data, "results": self.results}
        return {"a": self.a, "b": self.b, "differ": self.any, **{name: finite(part) for name, part in parts.items()}}

    def as_text(self) -> str:
        """The differences as they are shown to a person."""
        if not self.any:
            return f"nothing differs between {printable(self.a)} and {printable(self.b)}"
        parts = (
            ("settings", self.settings), ("versions", self.versions), ("data", self.data), ("results", self.results)
        )  # fmt: skip
        lines = [f"A  {printable(self.a)}", f"B  {printable(self.b)}"]
        for name, part in parts:
            lines += ["", f"{name}: the same"] if not part and name != "results" else _draw(name, part)
        return "\n".join(lines)


def compare_runs(a: Path, b: Path) -> Differences:
    """Hold two runs or evaluations against each other."""
    one, other = _sheet(a), _sheet(b)
    return Differences(
        shown_path(a),
        shown_path(b),
        settings=_differing(one["settings"], other["settings"]),
        versions=_differing(one["versions"], other["versions"]),
        data=_differing(one["data"], other["data"]),
        results=_both(one["results"], other["results"]),
    )


def _sheet(folder: Path) -> dict[str, dict[str, Any]]:
    """What is compared, by part."""
    run = RunDir(folder)
    is_run = run.run_file.is_file()
    record = read_record(run) if is_run else read_evaluation(folder)
    settings = settings_of(run, record) if is_run else part_of(record, "recipe")
    sources = mappings_in(record.get("data"))
    hashes = {str(each.get("name")): each.get("sha256") or f"{each.get('rows')} rows" for each in sources}
    begun = part_of(record, "fingerprints")
    named = {str(name): value for name, value in part_of(begun, "files").items()}
    return {
        "settings": {key: value for key, value in settings.items() if key not in _OWN_KEYS},
        "versions": part_of(record, "environment"),
        "data": {
            **hashes,
            **named,
            **{f"({name})": each for name, each in begun.items() if isinstance(each, str) and each},
        },
        "results": results_of(record) or _contests(record),
    }


def _contests(record: Mapping[str, Any]) -> dict[str, Any]:
    """The win rates of an evaluation of policies."""
    return {
        f"{each.get('model')} against {each.get('baseline')}, by {each.get('judge')}": part_of(each, "win_rate").get(
            "value"
        )
        for each in mappings_in(record.get("contests"))
    }


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Sides:
    return {name: sides for name, sides in _both(a, b).items() if len(sides) < 2 or sides["a"] != sides["b"]}


def _both(a: Mapping[str, Any], b: Mapping[str, Any]) -> Sides:
    return {
        name: {side: values[name] for side, values in (("a", a), ("b", b)) if name in values}
        for name in dict.fromkeys([*a, *b])
    }


def _draw(name: str, part: Sides) -> list[str]:
    rows = [(each, *(_text(sides, side) for side in ("a", "b"))) for each, sides in sorted(part.items())]
    if not rows:
        return []
    indent, column = (2 + max(len(row[index]) for row in rows) for index in (0, 1))
    return ["", name, *(f"  {key:<{indent}}{one:<{max(column, 3)}}| {other}" for key, one, other in rows)]


def _text(sides: Mapping[str, Any], side: str) -> str:
    if side not in sides:
        return UNSET
    value = sides[side]
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(f"{text[:16]}…" if _is_hash(text) else text)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
