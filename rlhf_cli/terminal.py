"""What is said on stderr, by the first process only, and plainly where there is no terminal."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_COLOURS = {"error": "31", "warning": "33", "hint": "36", "good": "32", "bold": "1", "faint": "2"}
_LEVELS = "▁▂▃▄▅▆▇█"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def put(text: str) -> None:
    """Write a result to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class _Apart:
    """Where talk goes that is one line to whoever watches."""

    head: str
    log: IO[str]


_apart: _Apart | None = None
_line_shown = False


def say(text: str) -> None:
    """Write a line to stderr; apart, to the log."""
    if os.environ.get("RANK", "0") != "0":
        return
    if _apart is None:
        announce(text)
    else:
        _write_log(text)
        show(text.split("\n", maxsplit=1)[0])


def announce(text: str) -> None:
    """Write a line to stderr, wherever talk goes."""
    if os.environ.get("RANK", "0") == "0":
        _clear()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def mark(text: str) -> None:
    """Write a line to stderr that says how far it is, wherever talk goes."""
    announce(text if _apart is None else f"{_apart.head}  {text}")


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
        return
    if _apart is not None:
        _write_log(text)
    announce("\n".join(lines))


# --- one line -------------------------------------------------------------------------------------------------------


@contextmanager
def talk_apart(head: str, log: Path) -> Iterator[None]:
    """Let talk go to a file, and show in one line of the terminal what goes on.

    Args:
        head: What the line begins with.
        log: Added to, in a folder that is there.
    """
    global _apart  # noqa: PLW0603 - where the one stderr of this process goes
    with log.open("a", encoding="utf-8") as file:
        _apart = _Apart(head, file)
        try:
            yield
        finally:
            _apart = None
            _clear()


def talks_apart() -> bool:
    """Whether talk goes to a file."""
    return _apart is not None


def show(text: str) -> None:
    """Show what goes on in the last line of the terminal, in the place of what was shown there before."""
    global _line_shown  # noqa: PLW0603
    if _apart is None or not is_terminal() or os.environ.get("TERM") == "dumb":
        return
    line = f"{_apart.head}  {printable(text)}"[: shutil.get_terminal_size().columns - 1]
    sys.stderr.write(f"\r\x1b[2K{line}")
    sys.stderr.flush()
    _line_shown = True


def _clear() -> None:
    global _line_shown  # noqa: PLW0603
    if _line_shown:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
        _line_shown = False


def _write_log(text: str) -> None:
    assert _apart is not None
    _apart.log.write(text + "\n")
    _apart.log.flush()


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of a number in one line of blocks, from its lowest to its highest value; the newest is at the end.

    Args:
        values: What is not finite leaves a gap.
        width: Columns; where there are more values, each stands for the mean of several.
    """
    share = max(1, -(-len(values) // max(1, width)))
    groups = [values[start : start + share] for start in range(0, len(values), share)]
    means = [math.fsum(group) / len(group) for group in groups]
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


# --- words ----------------------------------------------------------------------------------------------------------


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
