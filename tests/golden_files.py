"""Whole outputs kept as files; RLHF_UPDATE_GOLDEN=1 writes them anew, and the diff is to be read."""

from __future__ import annotations

import os
import re
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def assert_golden(name: str, text: str, *, folder: Path) -> None:
    """Compare with tests/golden/NAME; the test's own folder is written as TMP."""
    shown = re.sub(r"/tmp/[^ ]*/models\d+/", "MODELS/", text.replace(f"{folder}/", "").replace(str(folder), "TMP"))
    path = GOLDEN / name
    if os.environ.get("RLHF_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shown)
    assert path.exists(), f"no golden file {path}:\n{shown}"
    assert shown == path.read_text()
