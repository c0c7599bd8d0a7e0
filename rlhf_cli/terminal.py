"""What is said on stderr, by the first process only, and plainly where there is no terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys

_COLOURS = {"error": "31", "warning": "33", "hint": "36", "good": "32", "bold": "1", "faint": "2"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def put(text: str) -> None:
    """Write a result to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write a line to stderr."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def say_error(text: str, *, every_process: bool = False) -> None:
    """Write an error or a warning to stderr, its first word coloured.

    Args:
        text: What to say.
        every_process: Whether other processes than the first say it too, with their rank: their fault may be their own.
    """
    lines = [_paint_head(printable(line)) for line in text.split("\n")]
    rank = os.environ.get("RANK", "0")
    if every_process and rank != "0":
        sys.stderr.write("".join(f"[rank {rank}] {line}\n" for line in lines))
    else:
        say("\n".join(lines))


def _paint_head(line: str) -> str:
    head, colon, rest = line.partition(":")
    return paint(head + colon, head) + rest if head in _COLOURS else line


def paint(text: str, colour: str) -> str:
    """Colour a text where stderr shows colours."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if shows_colours() else text


def shows_colours() -> bool:
    """Whether stderr is a terminal that wants colours (no-color.org)."""
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    """Whether somebody watches stderr."""
    return sys.stderr.isatty()


def width() -> int | None:
    """Columns of the terminal; None where there is none, and lines may be as long as they like."""
    return shutil.get_terminal_size().columns if is_terminal() else None


def printable(text: str) -> str:
    r"""A text from data, without what could drive the terminal: control characters are shown as \xNN."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
