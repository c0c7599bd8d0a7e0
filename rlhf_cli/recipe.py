"""Read, inherit, override and check a recipe.

Every fault is found before anything heavy is imported, and all are reported at once.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Problem, RecipeError
from rlhf_cli.renames import IGNORED, RENAMED, RENAMED_VALUES, SYNONYMS, TRANSLATED
from rlhf_cli.schema import load_schema, method_names

COMMAND_LINE = "command line"
_YES_NO = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


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


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: what was written, and where. Nothing is filled in."""

    path: Path
    method: str
    values: dict[str, Any]
    origins: dict[str, Origin]
    schema: dict[str, Any]
    warnings: list[Problem] = field(default_factory=list)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        """The value written, or the schema's default."""
        if key in self.values:
            return self.values[key]
        return self.schema["properties"][key].get("default")

    def where(self, key: str) -> str:
        """`file:line` of a key, or the file where the key is left out."""
        return str(self.origins.get(key, self.path))


# --- reading --------------------------------------------------------------------------------------------------


def read_recipe(path: Path, *, method: str | None = None, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The recipe file.
        method: The method it is for; `None` takes it from the recipe's own `method:`.
        overrides: Pairs of key and value text from the command line; they win over the file.

    Raises:
        RecipeError: with every problem found.
    """
    values, origins = _read_file(path, ancestors=())
    _apply_overrides(values, origins, overrides)
    name = _method_of(values, origins, path, asked=method)
    schema = load_schema(name)
    warnings = _rename(values, origins)
    _coerce(values, schema)
    problems = list(_find_problems(values, origins, schema, path))
    if problems:
        raise RecipeError(
            f"{path}: {len(problems)} problems", problems=[*warnings, *problems], hint=_hint(problems, name)
        )
    values.pop("extends", None)
    return Recipe(path=path, method=name, values=values, origins=origins, schema=schema, warnings=warnings)


def _hint(problems: list[Problem], method: str) -> str | None:
    unknown = [problem for problem in problems if problem.what.startswith("unknown key")]
    if not unknown:
        return None
    meant = unknown[0].fix or unknown[0].what
    word = meant.split("`")[1].split("_")[0]
    return f"`rlhf schema {method} --search {word}` lists matching keys"


def _read_file(path: Path, ancestors: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Read one file and all it extends; the file's own keys win."""
    mapping, lines = _load_yaml(path)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    own_values: dict[str, Any] = {}
    own_origins: dict[str, Origin] = {}
    for key, value in mapping.items():
        line, column = mapping.lc.key(key)
        excerpt = lines[line].rstrip() if line < len(lines) else None
        own_origins[str(key)] = Origin(str(path), line + 1, column + 1, excerpt)
        own_values[str(key)] = _plain(value, path, line)
    bases = own_values.get("extends") or []
    resolved = path.resolve()
    for base in [bases] if isinstance(bases, str) else bases:
        base_path = path.parent / str(base)
        if base_path.resolve() in (*ancestors, resolved):
            chain = " → ".join(str(p.name) for p in (*ancestors, resolved, base_path.resolve()))
            problem = own_origins["extends"].problem(f"`extends` runs in a circle: {chain}", width=len("extends"))
            raise RecipeError(problem.what, problems=[problem])
        base_values, base_origins = _read_file(base_path, (*ancestors, resolved))
        _merge(values, base_values)
        origins.update(base_origins)
    _merge(values, own_values)
    origins.update(own_origins)
    return values, origins


def _merge(values: dict[str, Any], newer: Mapping[str, Any]) -> None:
    """Lay newer values over older ones: mappings merge, everything else is replaced."""
    for key, value in newer.items():
        older = values.get(key)
        if isinstance(older, dict) and isinstance(value, dict):
            merged = dict(older)
            _merge(merged, value)
            values[key] = merged
        else:
            values[key] = value


def _load_yaml(path: Path) -> tuple[Any, list[str]]:
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
    excerpt = lines[mark.line] if mark.line < len(lines) else ""
    return RecipeError(what, problems=[Problem(what, str(path), mark.line + 1, mark.column + 1, excerpt, width)])


def _nearby(path: Path) -> str | None:
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    return f"recipes in {folder}/: {', '.join(names[:8])}" if names else _first_recipe_hint()


def _first_recipe_hint() -> str:
    return f"`rlhf init {method_names()[0]}` writes one to start from"


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


def _apply_overrides(values: dict[str, Any], origins: dict[str, Origin], overrides: Sequence[tuple[str, str]]) -> None:
    for key, text in overrides:
        name = key.replace("-", "_")
        values[name] = parse_value(text)
        origins[name] = Origin(COMMAND_LINE)


def _method_of(values: dict[str, Any], origins: dict[str, Origin], path: Path, asked: str | None) -> str:
    written = values.get("method")
    names = method_names()
    if asked is None and written is None:
        raise RecipeError(
            "the recipe does not say which method it is for",
            where=str(path),
            hint=f"add `method: {names[0]}`, or pass `--method {names[0]}`",
        )
    if asked is not None and written is not None and written != asked:
        problem = origins["method"].problem(f"this is a recipe for `{written}`, not for `{asked}`", width=len("method"))
        hint = f"rlhf {written} {path}" if written in names else f"one of {', '.join(names)}"
        raise RecipeError(problem.what, problems=[problem], hint=hint)
    method = str(asked or written)
    if method not in names:
        problem = origins["method"].problem(
            f"unknown method `{method}`", width=len("method"), fix=f"one of {', '.join(names)}"
        )
        raise RecipeError(problem.what, problems=[problem])
    return method


# --- checking -------------------------------------------------------------------------------------------------


def _rename(values: dict[str, Any], origins: dict[str, Origin]) -> list[Problem]:
    """Map old keys to today's, in place; one warning a key."""
    warnings: list[Problem] = []

    def warn(key: str, what: str, fix: str) -> None:
        warnings.append(origins[key].problem(what, width=len(key), fix=fix, severity="warning"))

    for key in list(values):
        if key in RENAMED:
            newer = {RENAMED[key]: values[key]}
        elif key in TRANSLATED:
            newer = TRANSLATED[key](values[key])
        elif key in IGNORED:
            warn(key, f"`{key}` is ignored", IGNORED[key])
            del values[key]
            continue
        else:
            continue
        taken = [name for name in newer if name in values]
        names = " and ".join(f"`{name}`" for name in newer)
        if taken:
            warn(key, f"`{key}` is ignored: {names} is written too", f"remove `{key}`")
        else:
            warn(
                key,
                f"`{key}` is now {names or 'the default'}",
                "it was taken over; write today's key instead",
            )
            for name, value in newer.items():
                values[name] = value
                origins[name] = origins[key]
        del values[key]
    for (key, old), new in RENAMED_VALUES.items():
        if values.get(key) == old:
            warn(key, f"`{key}: {old}` is now `{key}: {new}`", "the value was taken over; rename it")
            values[key] = new
    return warnings


def _coerce(values: dict[str, Any], schema: dict[str, Any]) -> None:
    """Mend what YAML 1.2 reads otherwise than people mean it: yes and no, and 10.0 for a whole number."""
    for key, value in values.items():
        types = _types(schema["properties"].get(key, {}))
        if "boolean" in types and "string" not in types and isinstance(value, str):
            values[key] = _YES_NO.get(value.lower(), value)
        elif types & {"integer", "number"} == {"integer"} and isinstance(value, float) and value.is_integer():
            values[key] = int(value)


def _types(schema: Mapping[str, Any]) -> set[str]:
    declared = schema.get("type", [])
    return {declared} if isinstance(declared, str) else set(declared)


def _find_problems(
    values: dict[str, Any], origins: dict[str, Origin], schema: dict[str, Any], path: Path
) -> Iterator[Problem]:
    from jsonschema import Draft202012Validator

    known = schema["properties"]
    for key in values:
        if key not in known:
            fix = _did_you_mean(key, list(known))
            yield origins[key].problem(f"unknown key `{key}`", width=len(key), fix=fix)
    written = {key: value for key, value in values.items() if key in known}
    for error in Draft202012Validator(schema).iter_errors(written):
        key = str(error.absolute_path[0])
        what, fix = _explain(error)
        yield origins[key].problem(what, width=len(key), fix=fix)
    for options in schema["x-required"]:
        if all(values.get(key) is None for key in options):
            names = " or ".join(f"`{key}`" for key in options)
            yield Problem(f"missing key {names}", str(path), fix=f"add `{options[0]}: …`")
    for rule in schema["x-rules"]:
        if all(_holds(key, wanted, values, known) for key, wanted in rule["when"].items()):
            key = next(key for key in rule["when"] if key in values)
            yield origins[key].problem(rule["message"], width=len(key), fix=rule["fix"])


def _holds(key: str, wanted: Any, values: dict[str, Any], known: dict[str, Any]) -> bool:
    if wanted == "*":
        return values.get(key, known[key].get("default") if key == "max_length" else None) is not None
    value = values.get(key, known[key].get("default"))
    return bool(value == wanted and isinstance(value, bool) == isinstance(wanted, bool))


def _did_you_mean(word: str, candidates: list[str]) -> str | None:
    from rapidfuzz import fuzz, process

    name = word.lower().replace("-", "_")
    target = SYNONYMS.get(name)
    if target is None or target not in candidates:
        match = process.extractOne(name, candidates, scorer=fuzz.WRatio, score_cutoff=75)
        target = match[0] if match else None
    return f"did you mean `{target}`?" if target else None


_TYPE_WORDS = {
    "integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
    "array": "a list", "object": "a mapping", "null": "null",
}  # fmt: skip


def _explain(error: Any) -> tuple[str, str | None]:
    """A jsonschema error in our words: what is wrong, and the way to mend it."""
    name = ".".join(str(part) for part in error.absolute_path)
    got = json.dumps(error.instance, ensure_ascii=False, default=str)
    if error.validator == "type":
        wanted = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return f"`{name}` must be {' or '.join(_TYPE_WORDS[t] for t in wanted)}, got {got}", None
    if error.validator in ("enum", "const"):
        choices = error.validator_value if error.validator == "enum" else [error.validator_value]
        words = [json.dumps(choice).strip('"') for choice in choices]
        near = _did_you_mean(str(error.instance), words)
        is_key = "propertyNames" in error.absolute_schema_path
        what = f"`{name}` has no key {got}" if is_key else f"`{name}` cannot be {got}"
        return what, near or f"one of {', '.join(words)}"
    if error.validator == "required":
        return f"`{name}` lacks a key: {error.message}", None
    if error.validator == "additionalProperties":
        return f"`{name}`: {error.message}", f"one of {', '.join(error.schema['properties'])}"
    bounds = {
        "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    }  # fmt: skip
    if error.validator in bounds:
        return f"`{name}` must be {bounds[error.validator]} {error.validator_value}, got {got}", None
    return f"`{name}` cannot be {got}", None


def apply_environment(recipe: Recipe) -> None:
    """Set the recipe's `env`, before anything heavy is imported; what the user has set already wins."""
    for name, value in (recipe["env"] or {}).items():
        os.environ.setdefault(name, str(value))
    if recipe["hub_token"]:
        # Not through the trainer's arguments: those are pickled beside the model and pushed with it.
        os.environ["HF_TOKEN"] = str(recipe["hub_token"])
