"""Take a recipe over from older names, override it, and check it.

Every fault is found before anything heavy is imported, and all are reported at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Problem, RecipeError
from rlhf_cli.recipe_file import COMMAND_LINE, Origin, parse_value, read_file
from rlhf_cli.redaction import HIDDEN, hide_named, is_secret
from rlhf_cli.renames import IGNORED, RENAMED, RENAMED_VALUES, SYNONYMS, TRANSLATED, translate
from rlhf_cli.schema import load_schema, method_names

_YES_NO = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: what was written, and where. Nothing is filled in."""

    path: Path
    method: str
    values: dict[str, Any]
    origins: dict[str, Origin]
    schema: dict[str, Any]
    warnings: list[Problem] = field(default_factory=list)
    text: str | None = None
    """What was written, where that is not the file: a stage of a pipeline is a part of one."""

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        """The value written, or the schema's default."""
        if key in self.values:
            return self.values[key]
        return self.schema["properties"][key].get("default")

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The same for a key that not every command has."""
        return self[key] if key in self.schema["properties"] else otherwise

    def problem(self, key: str, what: str, fix: str | None = None) -> Problem:
        """A fault of a key's value, with the line it is written in."""
        origin = self.origins.get(key)
        return origin.problem(what, width=len(key), fix=fix) if origin else Problem(what, str(self.path), fix=fix)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Recipe:
        """The recipe with values for keys it leaves out."""
        return replace(self, values={**defaults, **self.values})

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
    values, origins = read_file(path)
    apply_overrides(values, origins, overrides)
    return check_values(values, origins, path, method=method)


def check_values(
    values: dict[str, Any], origins: dict[str, Origin], path: Path, *, method: str | None = None
) -> Recipe:
    """Check what was read, and take it over from older names.

    Args:
        values: The keys, which are changed in place.
        origins: Where each was written.
        path: The recipe file.
        method: The method it is for; `None` takes it from `method` among the keys.

    Raises:
        RecipeError: with every problem found.
    """
    name = _method_of(values, origins, path, asked=method)
    schema = load_schema(name)
    warnings = _rename(values, origins, schema["properties"])
    _coerce(values, schema)
    found = list(_find_problems(values, origins, schema, path))
    warnings += [problem for problem in found if problem.severity == "warning"]
    problems = [problem for problem in found if problem.severity != "warning"]
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
    meant = unknown[0].fix or ""
    word = (meant if "`" in meant else unknown[0].what).split("`")[1].split("_")[0]
    return f"`rlhf schema {method} --search {word}` lists matching keys"


def apply_overrides(values: dict[str, Any], origins: dict[str, Origin], overrides: Sequence[tuple[str, str]]) -> None:
    """Lay pairs of key and value text from the command line over what was read."""
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
            hint=f"add `method: …`, one of {', '.join(names)}, or pass `--method`",
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


def _rename(values: dict[str, Any], origins: dict[str, Origin], known: Collection[str]) -> list[Problem]:
    """Map old keys to today's, in place, where the command has those; one warning a key."""
    warnings: list[Problem] = []

    def warn(key: str, what: str, fix: str | None) -> None:
        warnings.append(origins[key].problem(what, width=len(key), fix=fix, severity="warning"))

    written = dict(values)
    for key in [key for key in written if key in IGNORED]:
        warn(key, f"`{key}` is ignored", IGNORED[key])
        del values[key]
    for key in [key for key in written if key in RENAMED or key in TRANSLATED]:
        newer, lost = translate(key, written[key], written)
        if not newer.keys() <= set(known):
            continue
        del values[key]
        what, fix = _take_over(key, newer, values)
        for name in newer.keys() - values.keys():
            values[name] = newer[name]
            origins[name] = origins[key]
        if newer or not lost:
            warn(key, what, fix)
        for name, why in lost:
            warn(key, f"{name} of `{key}` is ignored", why)
    for (key, old), new in RENAMED_VALUES.items():
        if values.get(key) == old:
            warn(key, f"`{key}: {old}` is now `{key}: {new}`", "the value was taken over; rename it")
            values[key] = new
    return warnings


def _take_over(key: str, newer: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, str]:
    """What to say of an old key, and how to be rid of it."""
    if not newer:
        return f"`{key}` has no key of its own any more", "it was taken over; remove it"
    taken = " and ".join(f"`{name}`" for name in newer if name in values)
    free = " and ".join(f"`{name}`" for name in newer if name not in values)
    if taken and not free:
        return f"`{key}` is ignored: {taken} is written too", f"remove `{key}`"
    if taken:
        return f"`{key}` is now {free}; {taken} is written too, and stays", f"write {free} instead"
    return f"`{key}` is now {free}", "it was taken over; write today's key instead"


def _coerce(values: dict[str, Any], schema: dict[str, Any]) -> None:
    """Mend what YAML 1.2 reads otherwise than people mean it: yes and no, 1 and 0, and 10.0 for a whole number."""
    for key, value in values.items():
        types = _types(schema["properties"].get(key, {}))
        if "boolean" in types and "string" not in types and isinstance(value, str):
            values[key] = _YES_NO.get(value.lower(), value)
        elif "boolean" in types and not types & {"integer", "number"} and isinstance(value, int) and value in (0, 1):
            values[key] = bool(value)
        elif types & {"integer", "number"} == {"integer"} and isinstance(value, float) and value.is_integer():
            values[key] = int(value)


def as_list(value: Any) -> list[Any]:
    """The value of a key that takes one, several or none, as a list."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value of a recipe, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


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
            fix = schema["x-refused"].get(key) or did_you_mean(key, list(known))
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
    for key, value in written.items():
        if not _is_finite(value):
            yield origins[key].problem(f"`{key}` must be finite, got {json.dumps(value)}", width=len(key))
    for rule in schema["x-rules"]:
        if all(_holds(key, wanted, values, known) for key, wanted in rule["when"].items()):
            key = next(key for key in rule["when"] if key in values)
            severity = rule.get("severity", "error")
            yield origins[key].problem(rule["message"], width=len(key), fix=rule["fix"], severity=severity)


def _is_finite(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return all(_is_finite(item) for item in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _holds(key: str, wanted: Any, values: dict[str, Any], known: dict[str, Any]) -> bool:
    if wanted == "*":
        return values.get(key, known[key].get("default") if key == "max_length" else None) is not None
    value = values.get(key, known[key].get("default"))
    return bool(value == wanted and isinstance(value, bool) == isinstance(wanted, bool))


def did_you_mean(word: str, candidates: list[str]) -> str | None:
    """Say which candidate somebody will have meant; None where none is near."""
    from rapidfuzz import fuzz, process

    name = word.lower().replace("-", "_")
    target = SYNONYMS.get(name)
    if target is None or target not in candidates:
        match = process.extractOne(name, candidates, scorer=fuzz.WRatio, score_cutoff=75)
        target = match[0] if match else None
    return f"did you mean `{target}`?" if target else None


def nearest_of(word: str, choices: Iterable[str]) -> str:
    """The same of a few choices; all of them where none is near."""
    candidates = list(choices)
    return did_you_mean(word, candidates) or f"one of {', '.join(candidates)}"


_TYPE_WORDS = {
    "integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
    "array": "a list", "object": "a mapping", "null": "null",
}  # fmt: skip


def _explain(error: Any) -> tuple[str, str | None]:
    """A jsonschema error in our words: what is wrong, and the way to mend it."""
    name = ".".join(str(part) for part in error.absolute_path)
    secret = any(is_secret(str(part)) for part in error.absolute_path)
    got = HIDDEN if secret else json.dumps(hide_named(error.instance), ensure_ascii=False, default=str)
    if error.validator == "type":
        wanted = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return f"`{name}` must be {' or '.join(_TYPE_WORDS[t] for t in wanted)}, got {got}", None
    if error.validator in ("enum", "const"):
        choices = error.validator_value if error.validator == "enum" else [error.validator_value]
        words = [json.dumps(choice).strip('"') for choice in choices]
        near = did_you_mean(str(error.instance), words)
        is_key = "propertyNames" in error.absolute_schema_path
        what = f"`{name}` has no key {got}" if is_key else f"`{name}` cannot be {got}"
        return what, error.schema.get("x-fix") or near or f"one of {', '.join(words)}"
    if error.validator in ("not", "pattern"):
        is_key = "propertyNames" in error.absolute_schema_path
        return f"`{name}` {'takes no key' if is_key else 'cannot be'} {got}", error.schema.get("x-fix")
    return _explain_more(error, name, got)


def _explain_more(error: Any, name: str, got: str) -> tuple[str, str | None]:
    if error.validator == "required":
        return f"`{name}` lacks a key: {error.message}", None
    if error.validator == "additionalProperties":
        return f"`{name}`: {error.message}", f"one of {', '.join(error.schema['properties'])}"
    bounds = {
        "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    }  # fmt: skip
    if error.validator in bounds:
        return f"`{name}` must be {bounds[error.validator]} {error.validator_value}, got {got}", None
    return f"`{name}` cannot be {got}", error.schema.get("x-fix")


def apply_environment(recipe: Recipe) -> None:
    """Set the recipe's `env`, before anything heavy is imported; what the user has set already wins."""
    for name, value in (recipe["env"] or {}).items():
        os.environ.setdefault(name, str(value))
    if recipe.get("hub_token"):
        # Not through the trainer's arguments: those are pickled beside the model and pushed with it.
        os.environ["HF_TOKEN"] = str(recipe["hub_token"])
