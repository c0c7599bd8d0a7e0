"""Make the schema of each command from the dataclasses of TRL: `python -m rlhf_cli.schema.generate [FOLDER]`."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import typing
from importlib import metadata
from pathlib import Path
from typing import Any

import pydantic

from rlhf_cli.command import Command
from rlhf_cli.eval_recipe import EVALUATION
from rlhf_cli.methods import METHODS
from rlhf_cli.renames import IGNORED
from rlhf_cli.schema.overlay import CHOICES, OWN_KEYS, RANGES, RULES, WIDER

STAMPED = ("trl", "transformers")


def main() -> None:
    """Write one schema a command into the folder given, or beside this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    for command in (*METHODS, EVALUATION):
        text = json.dumps(command_schema(command), indent=1, ensure_ascii=False) + "\n"
        # By rename, since two processes may derive a schema at once.
        draft = folder / f".{command.command}.json.new"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / f"{command.command}.json")


def command_schema(command: Command) -> dict[str, Any]:
    """Gather every key its recipe may have into one JSON Schema."""
    properties: dict[str, Any] = {}
    for dataclass_type in command.config_classes():
        hints = typing.get_type_hints(dataclass_type)
        for field in dataclasses.fields(dataclass_type):
            if field.init and field.name not in IGNORED:
                properties[field.name] = _field_schema(field, hints[field.name], source=dataclass_type.__name__)
    for name, narrower in command.narrowed.items():
        properties[name].update(narrower)
    shared = OWN_KEYS if command.shared is None else {name: OWN_KEYS[name] for name in command.shared}
    for name, schema in {**shared, **command.keys}.items():
        properties[name] = {**schema, "x-source": "rlhf-cli"}
    properties["method"] = {**properties["method"], "const": command.command}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"rlhf {command.command} recipe",
        "description": command.summary,
        "type": "object",
        "properties": dict(sorted(properties.items())),
        "additionalProperties": False,
        "x-versions": {name: metadata.version(name) for name in STAMPED},
        "x-required": [list(group) for group in command.required],
        "x-refused": dict(command.refused),
        "x-rules": [rule for rule in (*RULES, *command.rules) if set(rule["when"]) <= set(properties)],
    }


def _field_schema(field: dataclasses.Field[Any], hint: Any, *, source: str) -> dict[str, Any]:
    """One key: its type as JSON Schema, the choices and ranges the type hides, its help and default."""
    choices = CHOICES.get(field.name) or _enum_choices(hint) or field.metadata.get("choices")
    if field.name in WIDER:
        schema = dict(WIDER[field.name])
    elif choices:
        optional = type(None) in typing.get_args(hint)
        schema = {"enum": [*choices, *([None] if optional else [])]}
    else:
        schema = _plain_type(hint)
    if field.name in RANGES:
        schema.update(RANGES[field.name])
    if field.default is not dataclasses.MISSING:
        default = field.default.value if isinstance(field.default, enum.Enum) else field.default
        schema["default"] = default
    schema["description"] = " ".join(str(field.metadata.get("help", "")).replace("%%", "%").split())
    schema["x-source"] = source
    return schema


def _enum_choices(hint: Any) -> list[Any]:
    """The values of the enum in a hint such as `SchedulerType | str`, which by itself lets any string pass."""
    for member in typing.get_args(hint):
        if isinstance(member, type) and issubclass(member, enum.Enum):
            return [choice.value for choice in member]
    return []


def _plain_type(hint: Any) -> dict[str, Any]:
    """A hint as a flat JSON Schema type; `{}` (anything) for classes that a recipe spells as a mapping."""
    try:
        schema = pydantic.TypeAdapter(hint).json_schema()
    except pydantic.errors.PydanticSchemaGenerationError:
        return {}
    names: list[str] = []
    merged: dict[str, Any] = {}
    for option in schema.get("anyOf", [schema]):
        if "const" in option:
            names.append("boolean")
        elif "type" in option:
            names.append(option["type"])
            merged.update({key: value for key, value in option.items() if key == "items"})
        else:
            return {}
    merged["type"] = names[0] if len(names) == 1 else names
    return merged


if __name__ == "__main__":
    main()
