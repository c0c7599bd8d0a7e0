"""What the stages of a pipeline name of each other: `${stage}`, their folders, and the order that this asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Problem
from rlhf_cli.recipe import Recipe, nearest_of, texts_in
from rlhf_cli.recipe_file import Origin
from rlhf_cli.run_dir import BEST, RunDir

_REFERENCE = re.compile(r"\$\{\s*([^}]*?)\s*\}")


@dataclass
class Written:
    """A stage before it is checked: its keys and those it inherits, and where each is written."""

    name: str
    place: Origin
    values: dict[str, Any]
    origins: dict[str, Origin]

    def problem(self, what: str, fix: str | None = None) -> Problem:
        """What is wrong with it, where its name stands."""
        return self.place.problem(what, width=len(self.name), fix=fix)


def resolve_references(written: Sequence[Written], folders: Mapping[str, str]) -> Iterator[Problem]:
    """Put folders in the place of `${stage}`; say which names are of no stage, of a later one, or of a circle."""
    named = {stage.name: dict(_references(stage)) for stage in written}
    order, circles = list(named), set[frozenset[str]]()
    for stage in written:
        for name, key in named[stage.name].items():
            problem = stage.origins.get(key, stage.place).problem
            if key == "output_dir":
                what = "`output_dir` cannot be made of the folder of another stage"
                yield problem(what, width=len(key), fix="write it out, or leave it out")
            elif name not in folders:
                yield problem(f"`${{{name}}}` names no stage", width=len(key), fix=nearest_of(name, folders))
            elif circle := _way(name, stage.name, named):
                what = f"stages refer to each other in a circle: {' → '.join([stage.name, *circle])}"
                if frozenset(circle) not in circles:
                    yield problem(what, width=len(key))
                circles.add(frozenset(circle))
            elif order.index(name) > order.index(stage.name):
                what = f"the stage `{stage.name}` refers to `{name}`, which comes later"
                yield problem(what, width=len(key), fix=f"move `{name}` above `{stage.name}`")
        stage.values = {key: _put_in(value, folders) for key, value in stage.values.items()}


def _references(stage: Written) -> Iterator[tuple[str, str]]:
    """Names of stages, and the key each stands in."""
    for key, value in stage.values.items():
        for text in texts_in(value):
            for name in _REFERENCE.findall(text):
                yield name, key


def _put_in(value: Any, folders: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: folders.get(found.group(1), found.group()), value)
    if isinstance(value, dict):
        return {key: _put_in(item, folders) for key, item in value.items()}
    return [_put_in(item, folders) for item in value] if isinstance(value, list) else value


def _way(start: str, goal: str, named: Mapping[str, Mapping[str, str]]) -> list[str] | None:
    """The stages from one to another along references, both included."""
    ways, seen = [[start]], {start}
    while ways:
        way = ways.pop(0)
        if way[-1] == goal:
            return way
        for name in named.get(way[-1], {}):
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return None


def check_folders(written: Sequence[Written], folders: Mapping[str, str], output_dir: Path) -> Iterator[Problem]:
    """Every stage writes into a folder of its own, and none into what the pipeline keeps of them all."""
    places = {name: place_of(folder) for name, folder in folders.items()}
    for number, stage in enumerate(written):
        mine = places[stage.name]
        problem = stage.origins.get("output_dir", stage.place).problem
        for earlier in written[:number]:
            other = places[earlier.name]
            if mine == other:
                yield problem(f"the stages `{earlier.name}` and `{stage.name}` have one output_dir, `{mine}`")
            elif mine.is_relative_to(other) or other.is_relative_to(mine):
                yield problem(f"of the stages `{earlier.name}` and `{stage.name}`, one's output_dir is in the other's")
        if place_of(output_dir).is_relative_to(mine):
            yield problem(f"the stage `{stage.name}` cannot have the pipeline's output_dir, nor one around it")
        if mine.is_relative_to(place_of(RunDir(output_dir).own)):
            what = f"the stage `{stage.name}` cannot have the folder in which the pipeline keeps its own files"
            yield problem(what, fix="call it otherwise, or name another output_dir")


def place_of(folder: str | Path) -> Path:
    """Absolute, without links that are not there yet being followed; `~nobody` is no error."""
    return Path(os.path.normpath(Path(os.path.expanduser(folder)).absolute()))


def needs_of(recipe: Recipe, folders: Mapping[str, str]) -> tuple[str, ...]:
    """Stages whose folders a recipe names, by reference or as they are."""
    places = {name: place_of(folder) for name, folder in folders.items()}
    values = {key: value for key, value in recipe.values.items() if key != "output_dir"}
    named = _paths(values)
    return tuple(name for name, place in places.items() if any(path.is_relative_to(place) for path in named))


def are_checkpoints_read(folder: str, recipes: Sequence[Recipe]) -> bool:
    """Whether any of the recipes names checkpoints of a stage, or draws a frontier of them."""
    place = place_of(folder)
    for recipe in recipes:
        values = {key: value for key, value in recipe.values.items() if key != "output_dir"}
        for path in (each for each in _paths(values) if each.is_relative_to(place)):
            inside = path.relative_to(place).parts[:1]
            if inside and (inside[0] == BEST or inside[0].startswith("checkpoint-")):
                return True
            if not inside and recipe.get("frontier"):
                return True
    return False


def _paths(values: Mapping[str, Any]) -> list[Path]:
    return [place_of(text) for text in texts_in(values) if len(text) < os.pathconf("/", "PC_PATH_MAX")]


def check_order(written: Sequence[Written], needs: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Folders that are named as they are, without a reference."""
    order = [stage.name for stage in written]
    for stage in written:
        for name in needs[stage.name]:
            if order.index(name) >= order.index(stage.name):
                what = f"the stage `{stage.name}` reads the folder of " + (
                    "its own outcome" if name == stage.name else f"`{name}`, which comes later"
                )
                yield stage.problem(what)
