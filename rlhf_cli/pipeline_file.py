"""A pipeline file: stages in order, each a checked recipe that may name what earlier ones make."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Problem, RecipeError
from rlhf_cli.recipe import Recipe, apply_overrides, check_values, did_you_mean, nearest_of
from rlhf_cli.recipe_file import COMMAND_LINE, Origin, keys_of, load_yaml, merge, with_bases
from rlhf_cli.references import Written, are_checkpoints_read, check_folders, check_order, needs_of, resolve_references
from rlhf_cli.renames import IGNORED, RENAMED, TRANSLATED, translate
from rlhf_cli.schema import load_schema, method_names

KEYS = ("output_dir", "defaults", "stages")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SHARED = ("env", "hub_token")
"""Keys that set the environment of the one process in which all stages run."""
_EACH_ITS_OWN = ("extends", "method", "output_dir")


@dataclass(frozen=True)
class Stage:
    """One command of a pipeline."""

    name: str
    recipe: Recipe
    needs: tuple[str, ...] = ()
    """Earlier stages whose folders its recipe names."""
    saves: bool = False
    """Whether its checkpoints are read by others."""

    @property
    def folder(self) -> Path:
        """Where its outcome goes."""
        return Path(os.path.expanduser(self.recipe["output_dir"]))  # unlike Path's, no error of `~nobody`


@dataclass(frozen=True)
class Pipeline:
    """Stages, in the order in which they run."""

    path: Path
    output_dir: Path
    """Where stages go that do not name their own folder, and where is kept what became of each."""
    stages: tuple[Stage, ...]

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def is_pipeline(path: Path) -> bool:
    """Whether a file has stages; False where it cannot be read."""
    try:
        return "stages" in load_yaml(path)[0]
    except RecipeError:
        return False


def read_pipeline(path: Path, overrides: Sequence[tuple[str, str]] = ()) -> Pipeline:
    """Read and check a pipeline file.

    Args:
        path: The file.
        overrides: Pairs of `stage.key` and value text from the command line; they win over the file.

    Raises:
        RecipeError: with every problem found, in whatever stage.
    """
    mapping, lines = load_yaml(path)
    values, origins = keys_of(mapping, lines, path)
    _refuse(_check_keys(values, origins, path))
    output_dir = Path(os.path.expanduser(values.get("output_dir") or f"runs/{path.stem}"))
    names = keys_of(mapping["stages"], lines, path)[1]
    nodes = {str(name): node for name, node in mapping["stages"].items()}
    written = [_read_stage(name, nodes[name], place, lines) for name, place in names.items()]
    _override(written, overrides)
    if mapping.get("defaults"):
        _refuse(list(_lay_under(written, *keys_of(mapping["defaults"], lines, path))))
    folders = {stage.name: str(stage.values.get("output_dir") or output_dir / stage.name) for stage in written}
    for stage in written:
        stage.values["output_dir"] = folders[stage.name]
    _refuse(list(resolve_references(written, folders)))
    stages = _check(written, path)
    _refuse([*check_folders(written, folders, output_dir), *_check_shared(written)])
    needs = {stage.name: needs_of(stage.recipe, folders) for stage in stages}
    _refuse(list(check_order(written, needs)))
    recipes = [stage.recipe for stage in stages]
    known = (
        replace(stage, needs=needs[stage.name], saves=are_checkpoints_read(folders[stage.name], recipes))
        for stage in stages
    )
    return Pipeline(path, output_dir, tuple(known))


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise RecipeError("; ".join(problem.what for problem in problems), problems=problems)


def _check_keys(values: Mapping[str, Any], origins: Mapping[str, Origin], path: Path) -> list[Problem]:
    def problem(key: str, what: str, fix: str | None = None) -> Problem:
        return origins[key].problem(what, width=len(key), fix=fix)

    unknown = [key for key in values if key not in KEYS]
    if "stages" not in values:  # all keys of a recipe are none of a pipeline, and that is not what is wrong
        unknown = [key for key in unknown if did_you_mean(key, list(KEYS))]
    found = [problem(key, f"unknown key `{key}` of a pipeline", nearest_of(key, KEYS)) for key in unknown]
    if "stages" not in values:
        found.append(Problem("missing key `stages`", str(path), fix="a single recipe runs with its own command"))
    elif not isinstance(values["stages"], dict) or not values["stages"]:
        fix = "a name, and the keys of a recipe: `sft: {extends: sft.yaml}`"
        found.append(problem("stages", "`stages` must be a mapping of stages", fix))
    if not isinstance(values.get("output_dir", ""), (str, type(None))):
        found.append(problem("output_dir", "`output_dir` must be text"))
    if not isinstance(values.get("defaults"), (dict, type(None))):
        found.append(problem("defaults", "`defaults` must be a mapping of recipe keys"))
    return found


# --- what is written ------------------------------------------------------------------------------------------------


def _read_stage(name: str, node: Any, place: Origin, lines: Sequence[str]) -> Written:
    """One stage and what it extends; `sft: sft.yaml` is short for `sft: {extends: sft.yaml}`."""
    path, stage = Path(place.file), Written(name, place, {}, {})
    if not _NAME.fullmatch(name):
        _refuse([stage.problem(f"a stage cannot be called `{name}`", "letters, digits, - and _: its folder is too")])
    if isinstance(node, str):
        values, origins = {"extends": str(node)}, {"extends": place}
    elif isinstance(node, Mapping):
        values, origins = keys_of(node, lines, path)
    else:
        _refuse([stage.problem(f"the stage `{name}` must be a recipe file, or a mapping of its keys")])
    stage.values, stage.origins = with_bases(values, origins, path)
    if "method" not in stage.values and name in method_names():
        stage.values["method"], stage.origins["method"] = name, place
    return stage


def _override(written: Sequence[Written], overrides: Sequence[tuple[str, str]]) -> None:
    stages = {stage.name: stage for stage in written}
    for key, text in overrides:
        name, _, own = key.partition(".")
        if not own or name not in stages:
            fix = nearest_of(name, stages) if own else f"write `STAGE.{key}`, with STAGE one of {', '.join(stages)}"
            raise RecipeError(f"`{key}` names no stage", where=COMMAND_LINE, hint=fix)
        apply_overrides(stages[name].values, stages[name].origins, [(own, text)])


def _lay_under(
    written: Sequence[Written], defaults: Mapping[str, Any], origins: Mapping[str, Origin]
) -> Iterator[Problem]:
    """Give every stage those defaults that are keys of its command; what is a key of none is a mistake."""
    methods = {str(stage.values.get("method")) for stage in written} & set(method_names())
    known = {method: {*load_schema(method)["properties"], *_older_keys(method, defaults)} for method in methods}
    everywhere = set().union(*known.values())
    for key in defaults:
        if key in _EACH_ITS_OWN or key not in everywhere:
            why = "each stage has its own" if key in _EACH_ITS_OWN else "no stage has such a key"
            fix = did_you_mean(key, sorted(everywhere)) if key not in _EACH_ITS_OWN else None
            yield origins[key].problem(f"`{key}` cannot be a default: {why}", width=len(key), fix=fix)
    for stage in written:
        own = known.get(str(stage.values.get("method")), set())
        there = {name for key in stage.values for name in _meant(key, stage.values)}
        values = {
            key: value
            for key, value in defaults.items()
            if key in own and (key in stage.values or not _meant(key, defaults) & there)
        }
        merge(values, stage.values)
        stage.values = values
        stage.origins = {**{key: origins[key] for key in values if key in origins}, **stage.origins}


def _meant(key: str, written: Mapping[str, Any]) -> set[str]:
    """The keys of today that a key stands for."""
    return set(translate(key, written[key], written)[0]) if key in RENAMED or key in TRANSLATED else {key}


def _older_keys(method: str, written: Mapping[str, Any]) -> Iterator[str]:
    """Those of the keys that the method takes over from older names, or passes over."""
    known = load_schema(method)["properties"].keys()
    for key in written:
        is_old = key in RENAMED or key in TRANSLATED
        if key in IGNORED or (is_old and translate(key, written[key], written)[0].keys() <= known):
            yield key


# --- what is checked ------------------------------------------------------------------------------------------------


def _check(written: Sequence[Written], path: Path) -> list[Stage]:
    """Every stage as a recipe; the faults of all are raised together."""
    stages: list[Stage] = []
    problems: list[Problem] = []
    hint = None
    for stage in written:
        if "method" not in stage.values:
            what = f"the stage `{stage.name}` does not say which method it is for"
            problems.append(stage.problem(what, f"add `method: …`, one of {', '.join(method_names())}"))
            continue
        try:
            recipe = check_values(stage.values, stage.origins, path, method=None)
        except RecipeError as error:
            problems += [of_stage(stage.name, problem) for problem in error.problems]
            hint = hint or error.hint
            continue
        warnings = [of_stage(stage.name, warning) for warning in recipe.warnings]
        stages.append(Stage(stage.name, replace(recipe, warnings=warnings, text=_as_recipe(stage.name, recipe))))
    if problems:
        raise RecipeError("; ".join(problem.what for problem in problems), problems=problems, hint=hint)
    return stages


def of_stage(name: str, problem: Problem) -> Problem:
    """A problem that says which stage it is of."""
    return replace(problem, what=f"stage `{name}`: {problem.what}")


def _as_recipe(name: str, recipe: Recipe) -> str:
    """The stage as a recipe that could stand alone."""
    import io

    from ruamel.yaml import YAML

    text = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000
    yaml.dump({"method": recipe.method, **recipe.values}, text)
    return f"# The stage `{name}` of {recipe.path}, with all that it inherits.\n{text.getvalue()}"


def _check_shared(written: Sequence[Written]) -> Iterator[Problem]:
    """One process runs all stages, so that what sets its environment is the same for all."""
    known: dict[str, tuple[str, str]] = {}
    for stage in written:
        variables = {**(stage.values.get("env") or {}), **{key: stage.values.get(key) for key in _SHARED[1:]}}
        for name, value in variables.items():
            if value is None:
                continue
            first, before = known.setdefault(str(name), (stage.name, str(value)))
            if before != str(value):
                what = f"the stages `{first}` and `{stage.name}` set `{name}` differently, and share a process"
                yield stage.problem(what, "write it under `defaults`")
