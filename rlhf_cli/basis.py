"""What an outcome is made from: settings, files and code, each hashed; and which of it has changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_cli import __version__
from rlhf_cli.changes import MAY_CHANGE_ON_RESUME
from rlhf_cli.files import is_data_file
from rlhf_cli.inputs import find_inputs
from rlhf_cli.model_source import ADAPTER_CONFIG
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import find_secrets, hide_in, hide_named
from rlhf_cli.run_dir import RunDir
from rlhf_cli.writing import file_hash

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
"""Whose versions may change what comes out."""
_LENGTHS = frozenset({"max_steps", "num_train_epochs", "total_episodes", "stop_at_kl"})
"""Keys that may change when a run goes on, and that make another run of one that is done."""
_SAVING = frozenset({"save_strategy", "save_steps"})
"""Keys that say among which models the best is chosen, where that is kept rather than the last."""
_OF_A_RUN = frozenset({
    "README.md", "all_results.json", "eval_results.json", "report.html", "train_results.json", "trainer_state.json",
    "training_args.bin",
})  # fmt: skip
"""What a run leaves beside its model: no reader of the model looks at it."""
_OF_A_MODEL = frozenset({".bin", ".jinja", ".json", ".model", ".py", ".safetensors", ".tiktoken", ".txt"})


@dataclass(frozen=True)
class Basis:
    """What an outcome is made from."""

    settings: dict[str, Any]
    """Recipe keys that may change it, without secrets."""
    files: dict[str, str]
    """Hashes of the files and folders that they name."""
    code: dict[str, str]
    """Versions of what computes."""

    def changes_since(self, before: Basis) -> list[str]:
        """What differs from an earlier basis, in words."""
        now, then = (json.loads(json.dumps(asdict(basis), default=str)) for basis in (self, before))
        settings = [f"`{key}`" for key in _differing(now["settings"], then["settings"])]
        return [*settings, *_differing(now["files"], then["files"]), *_differing(now["code"], then["code"])]


def _differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))


class FileHashes:
    """Hashes of files, which are read again only where size or time differ from when they were read."""

    def __init__(self, known: Mapping[str, list[Any]] | None = None) -> None:
        self.known = dict(known or {})
        """By absolute path: size, times of change in ns (content, inode), and SHA-256."""

    def of_file(self, path: Path) -> str:
        """The hash of a file."""
        name, stat = str(path.absolute()), path.stat()
        facts = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = self.known.get(name)
        if known is None or known[:3] != facts:
            known = [*facts, file_hash(path)]
            self.known[name] = known
        return str(known[3])

    def of_files(self, folder: Path) -> dict[str, str]:
        """The hashes of all that matters in a folder, by name: of a model, what is loaded; of data, everything."""
        return {str(path.relative_to(folder)): self.of_file(path) for path in sorted(_that_matter(folder))}

    def of(self, path: Path) -> str:
        """The hash of a file, or of all that matters in a folder."""
        if path.is_file():
            return self.of_file(path)
        return hashlib.sha256(json.dumps(self.of_files(path)).encode()).hexdigest()


def _that_matter(folder: Path) -> Iterator[Path]:
    run = RunDir(folder)
    holds_model = any((folder / name).exists() for name in ("config.json", ADAPTER_CONFIG))
    for directory, below, names in os.walk(folder):
        here = Path(directory)
        below[:] = [name for name in below if not name.startswith((".", "checkpoint-")) and here / name != run.own]
        found = (here / name for name in names if name not in _OF_A_RUN and not name.startswith("."))
        yield from (path for path in found if path.is_file() and (not holds_model or _is_read(path)))
    yield from (path for path in (run.stored_answers, run.trained_prompts_file) if path.is_file())


def _is_read(path: Path) -> bool:
    """Whether a file that lies beside a model is a part of it, or rows."""
    return path.suffix in _OF_A_MODEL or is_data_file(path)


def find_basis(
    recipe: Recipe, hashes: FileHashes, *, more: Mapping[str, Any], leave_out: frozenset[str], saves: bool = False
) -> Basis:
    """What a recipe's outcome is made from, as it is now.

    What stands on the Hub is known by its name and revision only.

    Args:
        recipe: The recipe.
        hashes: Of files that were read before.
        more: What changes the outcome beside the recipe.
        leave_out: Keys that do not change it.
        saves: Whether its checkpoints are a part of the outcome, since something reads them.
    """
    unread = (MAY_CHANGE_ON_RESUME - _LENGTHS - {"gates"}) | leave_out
    if recipe.get("load_best_model_at_end"):
        unread -= _SAVING
    if saves:
        unread -= _SAVING | {"save_total_limit"}
    settings = {key: value for key, value in recipe.values.items() if key not in unread}
    files = {name: hashes.of(path) for name, path in sorted(find_inputs(settings).items())}
    public = hide_in(hide_named(settings), find_secrets(recipe.values))
    return Basis({**public, **more, "method": recipe.method}, files, code_versions())


@cache
def code_versions() -> dict[str, str]:
    """Versions of what computes; of this package also its source, which differs from commit to commit."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return {
        "rlhf-cli": f"{__version__} {digest.hexdigest()[:12]}",
        **{name: metadata.version(name) for name in PACKAGES},
    }
