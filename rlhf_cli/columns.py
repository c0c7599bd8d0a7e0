"""A raw row under the names that a recipe gives its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_cli.layouts import LAYOUTS
from rlhf_cli.rows import BadRow, kept_beside

_OPTIONAL = frozenset(column for layout in LAYOUTS for column in layout.optional)
COLUMNS = tuple(sorted(_OPTIONAL.union(*(layout.columns for layout in LAYOUTS))))
"""What `columns:` in a recipe may map to."""
_NOWHERE = object()


def choose_columns(row: Mapping[str, Any], columns: Mapping[str, str] | Sequence[str] | None) -> Mapping[str, Any]:
    """A raw row under the names that a recipe gives its columns.

    Args:
        row: As it was read.
        columns: Our name to theirs, where theirs may be a path such as `instances.0.output`; or a list of columns to
            keep, as TRL has it; or None.

    Raises:
        BadRow: when a column is not there.
    """
    if not columns:
        return row
    if not isinstance(columns, Mapping):
        return {name: row[name] for name in columns if name in row}
    found = {ours: _dig(row, theirs) for ours, theirs in columns.items()}
    missing = [theirs for ours, theirs in columns.items() if found[ours] is _NOWHERE and ours not in _OPTIONAL]
    if missing:
        raise BadRow(f"there is no column `{missing[0]}`; there are {', '.join(sorted(map(str, row)))}")
    return {**kept_beside(row), **{ours: value for ours, value in found.items() if value is not _NOWHERE}}


def unfound_columns(sample: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """Columns that a recipe maps and that no row of the sample has."""
    return [path for path in columns.values() if all(_dig(row, path) is _NOWHERE for row in sample)]


def _dig(row: Mapping[str, Any], path: str) -> Any:
    """A value by its column, or by its path below one."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _NOWHERE
    return value
