"""The words of a command line: the recipe, keys that override it, and options of the launcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_cli.errors import RecipeError
from rlhf_cli.schema import load_schema


def split_stage_arguments(arguments: Sequence[str]) -> tuple[Path, list[tuple[str, str]]]:
    """Tell the pipeline file from keys of its stages: `--ppo.kl_coef 0.1`, `--ppo.kl_coef=0.1`, `ppo.kl_coef=0.1`.

    A flag that stands alone means true.
    """
    files: list[str] = []
    overrides: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        stage, dot, own = name.lstrip("-").partition(".")
        key = stage + dot + own.replace("-", "_")
        if equals:
            overrides.append((key, value))
        elif argument.startswith("--"):
            overrides.append((key, rest.pop(0) if rest and not rest[0].startswith("--") else "true"))
        else:
            files.append(argument)
    if len(files) != 1:
        what = f"one pipeline is wanted, got {len(files)}: {' '.join(files)}" if files else "no pipeline given"
        raise RecipeError(what, hint="rlhf run PIPELINE [--stage.key value …]")
    return Path(files[0]), overrides


def split_arguments(arguments: Sequence[str], method: str) -> tuple[Path, list[tuple[str, str]]]:
    """Tell the recipe from `--key value`, `--key=value` and `key=value`, in any order.

    A flag that stands alone (`--packing`) means true.
    """
    recipes: list[str] = []
    overrides: list[tuple[str, str]] = []
    known = load_schema(method)["properties"]
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        key = name.lstrip("-").replace("-", "_")
        if equals and (name.startswith("--") or name.isidentifier()):
            overrides.append((key, value))
        elif argument.startswith("--") and len(argument) > 2:
            is_flag = known.get(key, {}).get("type") == "boolean"
            stands_alone = not rest or rest[0].startswith("--") or (is_flag and not _is_truth(rest[0]))
            overrides.append((key, "true" if stands_alone else rest.pop(0)))
        else:
            recipes.append(argument)
    if len(recipes) != 1:
        what = f"one recipe is wanted, got {len(recipes)}: {' '.join(recipes)}" if recipes else "no recipe given"
        raise RecipeError(what, hint=f"rlhf {method} RECIPE [--key value …]")
    return Path(recipes[0]), overrides


def _is_truth(word: str) -> bool:
    return word.lower() in ("true", "false", "yes", "no", "on", "off", "null", "0", "1")


def without_launch_options(arguments: Sequence[str]) -> list[str]:
    """The command line of a process that is launched."""
    kept: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name = argument.partition("=")[0].replace("_", "-")
        if name not in ("--num-processes", "--accelerate-config"):
            kept.append(argument)
        elif "=" not in argument:
            rest.pop(0)
    return kept
