"""Keep tokens and keys out of what is written down."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(r"token$|_key$|secret|passw|credential", re.IGNORECASE)
_NOT_SECRET = re.compile(r"^(eos|pad|bos|unk)_token$|_path$", re.IGNORECASE)
_LINE = re.compile(r"^(\s*([\w-]+)\s*:[ \t]+)\S.*$", re.MULTILINE)
_SHORTEST = 8
"""Characters; a shorter value would blank out words that have nothing to do with it."""


def find_secrets(named: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that must not be written down, of these names and of the environment; longest first."""
    found = {
        str(value)
        for name, value in [*named.items(), *os.environ.items()]
        if value and is_secret(name) and len(str(value)) >= _SHORTEST
    }
    return tuple(sorted(found, key=len, reverse=True))


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds something secret."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


def hide_lines(text: str) -> str:
    """A YAML text whose lines `name: value` lost the value where the name is that of a secret."""
    return _LINE.sub(lambda match: f"{match[1]}{HIDDEN}" if is_secret(match[2]) else match[0], text)


def hide(text: str, secrets: Iterable[str]) -> str:
    """A text without the secrets in it."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def hide_in(value: Any, secrets: Iterable[str]) -> Any:
    """A JSON value without the secrets in its texts."""
    if isinstance(value, str):
        return hide(value, secrets)
    if isinstance(value, Mapping):
        return {key: hide_in(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_in(item, secrets) for item in value]
    return value
