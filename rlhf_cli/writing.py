"""Files written whole or not at all, JSON as everybody reads it, and hashes that tell one content from another."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON by rename, so that a reader never sees half of it."""
    try:
        content = json.dumps(finite(value), indent=2, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # the name of a file that is not UTF-8
        content = json.dumps(finite(value), indent=2, default=str).encode()
    write_bytes(path, content + b"\n")


def write_text(path: Path, text: str) -> None:
    """Write a file by rename, and have it on the disk before the name points to it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same of bytes."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def finite(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinity, for which it has no word, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
