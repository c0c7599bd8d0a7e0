"""The keys of each method: generated JSON Schemas, and what generates them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_cli.errors import EnvironmentFault

FOLDER = Path(__file__).parent


def method_names() -> list[str]:
    """The methods that have a schema."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_schema(method: str) -> dict[str, Any]:
    """Read a method's schema; derive it anew, once, where other versions of TRL or transformers are installed."""
    shipped = _read_json(FOLDER / f"{method}.json")
    installed = {name: metadata.version(name) for name in shipped["x-versions"]}
    if installed == shipped["x-versions"]:
        return shipped
    import platformdirs

    versions = "-".join(f"{name}{version}" for name, version in sorted(installed.items()))
    cache = Path(platformdirs.user_cache_dir("rlhf-cli")) / f"schema-{metadata.version('rlhf-cli')}-{versions}"
    if not (cache / f"{method}.json").exists():
        _derive_schemas(cache)
    return _read_json(cache / f"{method}.json")


def _derive_schemas(folder: Path) -> None:
    command = [sys.executable, "-m", "rlhf_cli.schema.generate", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFault(
            f"could not derive the recipe keys from the installed TRL: {last}",
            hint="pip install -c constraints.txt rlhf-cli, or run `rlhf doctor`",
        )


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
