"""A recipe file, and what it extends, as plain values, each with the line it was written in."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Problem, RecipeError
from rlhf_cli.redaction import hide, hide_lines, secret_texts
from rlhf_cli.schema import method_names

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    file: str
    line: int | None = None
    column: int | None = None
    excerpt: str | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def problem(self, what: str, *, width: int = 1, fix: str | None = None, severity: str = "error") -> Problem:
        """A problem at this place."""
        place = {"file": self.file, "line": self.line, "column": self.column, "excerpt": self.excerpt}
        return Problem(what=what, width=width, fix=fix, severity=severity, **place)  # type: ignore[arg-type]


def read_file(path: Path, *, ancestors: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Read one file and all it extends; the file's own keys win.

    Args:
        path: The file.
        ancestors: The files that extend it, which it cannot extend itself.

    Raises:
        RecipeError: when a file is no mapping of keys, or they extend each other in a circle.
    """
    mapping, lines = load_yaml(path)
    return with_bases(*keys_of(mapping, lines, path), path, ancestors=ancestors)


def with_bases(
    own_values: dict[str, Any], own_origins: dict[str, Origin], path: Path, *, ancestors: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Lay keys over all that their `extends` names, which stands relative to their file.

    Raises:
        RecipeError: as `read_file`.
    """
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    resolved = path.resolve()
    for base in _bases(own_values, own_origins):
        base_path = path.parent / base
        if base_path.resolve() in (*ancestors, resolved):
            chain = " → ".join(str(p.name) for p in (*ancestors, resolved, base_path.resolve()))
            raise _extends_error(own_origins, f"`extends` runs in a circle: {chain}")
        base_values, base_origins = read_file(base_path, ancestors=(*ancestors, resolved))
        merge(values, base_values)
        origins.update(base_origins)
    merge(values, own_values)
    origins.update(own_origins)
    return values, origins


def keys_of(mapping: Any, lines: Sequence[str], path: Path) -> tuple[dict[str, Any], dict[str, Origin]]:
    """The keys of one mapping of a file, merged ones (`<<:`) included, and where each stands."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for key in mapping:
        line, column = _position(mapping, key)
        value = _plain(mapping[key], path, line)
        excerpt = lines[line].rstrip() if line < len(lines) else ""
        shown = hide(hide_lines(excerpt), secret_texts({str(key): value}))
        origins[str(key)] = Origin(str(path), line + 1, column + 1, shown)
        values[str(key)] = value
    return values, origins


def _position(mapping: Any, key: Any) -> tuple[int, int]:
    """Line and column of a key, which may stand in a mapping that is merged in."""
    if mapping.lc.data and key in mapping.lc.data:
        line, column = mapping.lc.key(key)
        return int(line), int(column)
    # ruamel.yaml 0.18 pairs each with its place.
    sources = (source[1] if isinstance(source, tuple) else source for source in mapping.merge)
    return _position(next(source for source in sources if key in source), key)


def _bases(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> list[str]:
    bases = values.get("extends")
    names = [bases] if isinstance(bases, str) else bases or []
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    raise _extends_error(origins, "`extends` must be a file name or a list of them")


def _extends_error(origins: Mapping[str, Origin], what: str) -> RecipeError:
    return RecipeError(what, problems=[origins["extends"].problem(what, width=len("extends"))])


def merge(values: dict[str, Any], newer: Mapping[str, Any]) -> None:
    """Lay newer values over older ones: mappings merge, everything else is replaced."""
    for key, value in newer.items():
        older = values.get(key)
        if isinstance(older, dict) and isinstance(value, dict):
            merged = dict(older)
            merge(merged, value)
            values[key] = merged
        else:
            values[key] = value


def load_yaml(path: Path) -> tuple[Any, list[str]]:
    """A file's mapping, with its places, and its lines.

    Raises:
        RecipeError: when it cannot be read, or is no mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError("no such recipe", where=str(path), hint=_nearby(path)) from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe: {error}", where=str(path)) from None
    lines = text.splitlines()
    try:
        mapping = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        raise _yaml_error(error, path, lines) from None
    except YAMLError as error:
        raise RecipeError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from None
    if mapping is None:
        raise RecipeError("the recipe is empty", where=str(path), hint=_first_recipe_hint())
    if not isinstance(mapping, CommentedMap):
        kind = "a list" if isinstance(mapping, list) else "a single value"
        raise RecipeError(f"a recipe is `key: value` lines, this is {kind}", where=str(path))
    return mapping, lines


def _yaml_error(error: Any, path: Path, lines: list[str]) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    what = " ".join(str(error.problem or error.context).split())
    width = 1
    if type(error).__name__ == "DuplicateKeyError":
        key = what.split('"')[1]
        first = next((n for n, line in enumerate(lines, 1) if line.startswith(f"{key}:")), None)
        width = len(key)
        what = f"`{key}` is written twice" + (f", first in line {first}" if first else "")
    else:
        what = f"not YAML: {what}"
    if mark is None:
        return RecipeError(what, where=str(path))
    excerpt = hide_lines(lines[mark.line]) if mark.line < len(lines) else ""
    return RecipeError(what, problems=[Problem(what, str(path), mark.line + 1, mark.column + 1, excerpt, width)])


def _nearby(path: Path) -> str | None:
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    return f"recipes in {folder}/: {', '.join(names[:8])}" if names else _first_recipe_hint()


def _first_recipe_hint() -> str:
    return f"`rlhf init METHOD` writes one to start from: {', '.join(method_names())}"


def _plain(value: Any, path: Path, line: int) -> Any:
    """A round-trip YAML value as plain Python. Tags are refused: they could mean anything."""
    tag = getattr(value, "tag", None)
    if tag is not None and getattr(tag, "value", None) and not str(tag.value).startswith("tag:yaml.org,2002:"):
        problem = Problem(f"unknown YAML tag `{tag.value}`", str(path), line + 1, fix="write the value without a tag")
        raise RecipeError(problem.what, problems=[problem])
    if isinstance(value, Mapping):
        return {str(key): _plain(item, path, line) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, path, line) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    for plain_type in (int, float, str):
        if isinstance(value, plain_type):
            return plain_type(value)
    return str(value)


def parse_value(text: str) -> Any:
    """A value from the command line, read as YAML: `1e-5`, `true`, `[q_proj, v_proj]`, `null`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return _plain(YAML(typ="rt").load(text), Path(COMMAND_LINE), 0)
    except YAMLError:
        return text
