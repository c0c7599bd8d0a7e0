"""The toy world as a project: a base model, rows, recipes and two pipelines, written into a folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.demo import BASE, RECIPES
from rlhf_cli.demo.annotators import CAREFUL, LENGTH_LOVER
from rlhf_cli.demo.texts import comparisons, demonstrations, held_out_questions, open_questions, write_rows
from rlhf_cli.errors import RecipeError

PIPELINE, HACK = "pipeline.yaml", "hack.yaml"
DEMONSTRATIONS, COMPARISONS = 600, 2000
ASKED = 3
"""Times that a held-out question is asked: one answer to each would be too few to tell."""
_FOLDER = re.compile(r"(?<![\w./-])demo/")
_SEED = re.compile(r"^  seed: (\d+)$", re.MULTILINE)


def write_project(folder: Path, seed: int) -> bool:
    """Write the project, unless it is there: what somebody has edited stays.

    Args:
        folder: Where to; the recipes name it as it is given here.
        seed: Of the rows, and of everything that is trained.

    Returns:
        Whether it was written.

    Raises:
        RecipeError: when the folder holds something else, or the project of another seed.
    """
    if (folder / PIPELINE).is_file():
        _refuse_other_seed(folder, seed)
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is there already, and holds no demo", hint="name another folder: `rlhf demo NAME`")
    # Written beside and renamed: an interruption leaves no half of it.
    draft = folder if folder.exists() else folder.with_name(f".{folder.name}.new")
    if draft != folder:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(BASE, draft / "base")
    write_data(draft, seed)
    for recipe in RECIPES.glob("*.yaml"):
        text = _SEED.sub(f"  seed: {seed}", recipe.read_text(encoding="utf-8"))
        (draft / recipe.name).write_text(put_into(text, folder), encoding="utf-8")
    draft.rename(folder)
    return True


def put_into(recipe: str, folder: Path) -> str:
    """A recipe of this package whose paths, below `demo/`, are below a folder."""
    return _FOLDER.sub("" if folder == Path() else f"{folder.as_posix()}/", recipe)


def _refuse_other_seed(folder: Path, seed: int) -> None:
    found = _SEED.search((folder / PIPELINE).read_text(encoding="utf-8"))
    if found is not None and int(found.group(1)) != seed:
        raise RecipeError(
            f"{folder} was written with seed {found.group(1)}",
            hint=f"`rlhf demo {folder}-{seed} --seed {seed}` writes another",
        )


def write_data(folder: Path, seed: int) -> None:
    """Write the rows, into `data/`."""
    rows: Mapping[str, Iterable[dict[str, Any]]] = {
        "demonstrations": demonstrations(DEMONSTRATIONS, seed),
        "comparisons": comparisons(COMPARISONS, seed, CAREFUL),
        "comparisons-by-length": comparisons(COMPARISONS, seed, (LENGTH_LOVER,)),
        "prompts": ({"prompt": text} for text in open_questions()),
        "questions": ({"prompt": text} for _ in range(ASKED) for text in held_out_questions()),
    }
    for name, each in rows.items():
        write_rows(folder / "data" / f"{name}.jsonl", each)
