"""The files that an outcome comes from: what the values of a recipe name, and the source of its functions."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from glob import glob, has_magic
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from rlhf_cli.model_source import ADAPTER_CONFIG
from rlhf_cli.recipe import as_list, texts_in

_FUNCTION = re.compile(r"(?P<place>[^\s:]+):[^\W\d]\w*")
_OURS = Path(__file__).parent
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def find_inputs(values: Mapping[str, Any]) -> dict[str, Path]:
    """Files and folders that the values of a recipe name, by the names they have there.

    Of an adapter its base is one too, of a function the files its source is in, of a dataset in parts each part, and
    where a frontier is drawn every checkpoint.
    """
    texts = [text for value in values.values() for text in texts_in(value)]
    found = {name: path for text in texts for name, path in _named(text)}
    for entry in as_list(values.get("datasets")):
        if isinstance(entry, Mapping):
            found |= {str(path): path for path in _parts(entry)}
    if values.get("frontier"):
        models = (Path(os.path.expanduser(text)) for text in texts_in(values.get("models")))
        found |= {str(path): path for model in models for path in sorted(model.glob("checkpoint-*")) if path.is_dir()}
    return found


def _named(text: str, seen: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path]]:
    """What a text names, where it names something; one that is there is no function, whatever it looks like."""
    path = Path(os.path.expanduser(text))
    if text and os.path.exists(path):  # unlike Path.exists, False for what cannot be a path
        yield text, path
        base = _base_of(path)
        if base and base not in seen:
            yield from _named(base, seen | {text, base})
    elif function := _FUNCTION.fullmatch(text):
        for file in source_files(function["place"]):
            yield _shown(file), file


def _base_of(adapter: Path) -> str | None:
    """The base that an adapter names; whoever loads a damaged one says so."""
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return str(config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return None


def _parts(entry: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders that an entry of a mixture names within its path, or by a pattern."""
    folder = os.path.expanduser(str(entry.get("path") or ""))
    for part in (*texts_in(entry.get("data_files")), *texts_in(entry.get("data_dir"))):
        for text in (os.path.expanduser(part), os.path.join(folder, part)):
            names = sorted(glob(text, recursive=True)) if has_magic(text) else [text]
            yield from (Path(name) for name in names if os.path.exists(name))


# --- the source of functions ----------------------------------------------------------------------------------------


def source_files(place: str) -> list[Path]:
    """The files of a module and of what it imports, as far as that is neither installed nor ours; nothing is imported.

    Args:
        place: A Python file, or the name of a module.
    """
    waiting = [Path(os.path.expanduser(place)).absolute()] if place.endswith(".py") else _module_files([place])
    found: list[Path] = []
    while waiting:
        file = waiting.pop()
        if file not in found and file.is_file() and not file.is_relative_to(_OURS):  # our own code is hashed as a whole
            found.append(file)
            waiting += [each for each in _imported(file) if not _is_installed(each)]
    return found


def _is_installed(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in _INSTALLED)


def _imported(file: Path) -> Iterator[Path]:
    """The files of the modules that a file imports, wherever in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from _module_files([alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1].joinpath(*filter(None, (node.module or "").split(".")))
            yield from _in_folder(folder)
            yield from (found for alias in node.names for found in _in_folder(folder / alias.name))
        elif isinstance(node, ast.ImportFrom):
            yield from _module_files([str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)])


def _module_files(names: Sequence[str]) -> list[Path]:
    """The files of modules and of the packages that they are in, found without importing them."""
    parts = [name.split(".") for name in names if all(part.isidentifier() for part in name.split("."))]
    every = dict.fromkeys(tuple(part[:length]) for part in parts for length in range(1, len(part) + 1))
    return [file.absolute() for top, *below in every for file in _module_file(top, below)]


def _module_file(top: str, below: Sequence[str]) -> Iterator[Path]:
    try:
        # Beside the command too, as `python -m` has it.
        spec = PathFinder.find_spec(top, [os.getcwd(), *sys.path]) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is not None and below:
        for folder in spec.submodule_search_locations or []:
            yield from _in_folder(Path(folder, *below))
    elif spec is not None and spec.origin and spec.origin.endswith(".py"):
        yield Path(spec.origin)


def _in_folder(module: Path) -> Iterator[Path]:
    yield from (file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file())


def _shown(file: Path) -> str:
    """As it is named from here, so that a project can be moved."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
