"""Keep tokens and keys out of what is written down."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"token$|_key$|api_?key|access_?key|secret|passw|credential|(^|_)(pass|pwd|pat|auth)$", re.IGNORECASE
)
_NOT_SECRET = re.compile(r"^(eos|pad|bos|unk)_token$|_path$", re.IGNORECASE)
_LINE = re.compile(r"""^(\s*(?:-\s+)?["']?([\w-]+)["']?\s*:[ \t]+)\S.*$""", re.MULTILINE)
_FLOW = re.compile(r"""(["']?([\w-]+)["']?\s*:[ \t]+)([^\s,}\]][^,}\]\n]*)""")
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/:@]*:[^\s/@]+(?=@)")
"""The user and the password in the address of a server."""
_SHORTEST = 8
"""Characters; a shorter value would blank out words that have nothing to do with it."""


def find_secrets(named: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that must not be written down, of these names, at any depth, and of the environment; longest first."""
    return tuple(value for value in secret_texts({"recipe": named, "os": os.environ}) if len(value) >= _SHORTEST)


def secret_texts(named: Mapping[str, Any]) -> tuple[str, ...]:
    """All that stands under the name of a secret, longest first."""
    return tuple(sorted(set(_below(named)), key=len, reverse=True))


def _below(value: Any, *, secret: bool = False) -> Iterator[str]:
    """Every text below a secret name."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _below(item, secret=secret or is_secret(str(name)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _below(item, secret=secret)
    elif secret and value:
        yield str(value)


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds something secret."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


def hide_named(value: Any) -> Any:
    """A value in which whatever stands under the name of a secret is hidden."""
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if item is not None and is_secret(str(name)) else hide_named(item)
            for name, item in value.items()
        }
    return [hide_named(item) for item in value] if isinstance(value, (list, tuple)) else value


def hide_yaml(text: str) -> str:
    """A YAML text in which whatever stands under the name of a secret is hidden, however it is written."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        spans = sorted(set(_secret_spans(YAML(typ="rt").compose(text))), reverse=True)
    except YAMLError:
        return hide_lines(text)
    for start, end in spans:
        # A block scalar ends where the next line begins.
        text = text[:start] + HIDDEN + ("\n" if text[start:end].endswith("\n") else "") + text[end:]
    return text


def _secret_spans(node: Any) -> Iterator[tuple[int, int]]:
    """Where secret values stand below a YAML node."""
    if node is None or isinstance(node.value, str):
        return
    for item in node.value:
        key, value = item if isinstance(item, tuple) else (None, item)
        if key is not None and isinstance(key.value, str) and is_secret(key.value):
            if value.start_mark.index < value.end_mark.index:
                yield value.start_mark.index, value.end_mark.index
        else:
            yield from _secret_spans(value)


def hide_lines(text: str) -> str:
    """A text, YAML or nearly so, whose `name: value` lost the value where the name is that of a secret."""
    for pattern in (_LINE, _FLOW):
        text = pattern.sub(lambda match: f"{match[1]}{HIDDEN}" if is_secret(match[2]) else match[0], text)
    return text


def hide(text: str, secrets: Iterable[str]) -> str:
    """A text without the secrets in it, and without passwords in addresses."""
    text = _IN_ADDRESS.sub(HIDDEN, text)
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
