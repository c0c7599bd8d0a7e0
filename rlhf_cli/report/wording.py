"""How numbers, dates and texts are written on a page, and what texts are kept from doing."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
"""Control characters, halves of surrogate pairs, and what turns the direction of the text around it."""
UNKNOWN = "–"


def clean(value: Any) -> Any:
    """A value from a file whose texts can be shown: what no page can hold becomes �, at any depth."""
    if isinstance(value, float):
        return value
    if isinstance(value, str):
        return _UNSEEN.sub("\ufffd", value.replace("\r\n", "\n").replace("\r", "\n"))
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file, fit to be shown; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return dict(clean(found)) if isinstance(found, dict) else {}


def cut(text: str, length: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be shown as a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, like: Any = None) -> str:
    """A number to three digits or so, without a power of ten where it can be helped.

    Args:
        value: The number.
        like: Another number, which it is written as finely as, since both stand together.
    """
    if not is_number(value):
        return UNKNOWN
    size = abs(value if like is None else like)
    is_whole = isinstance(value, int) or (size >= 10 and value.is_integer())
    if value == 0 or size >= 1000 or (like is None and is_whole):
        return minus(f"{value:,.0f}")
    if size < 0.001:
        return minus(f"{value:.2g}")
    return minus(f"{value:.{max(0, min(2, 2 - math.floor(math.log10(size)))) if size >= 0.1 else 3}f}")


def signed(value: Any, like: Any = None) -> str:
    """The same with its sign."""
    text = number(value, like)
    return f"+{text}" if is_number(value) and value > 0 else text


def points(value: Any) -> str:
    """A difference of shares, in percentage points."""
    return minus(f"{100 * value:+.1f}") + " points" if is_number(value) else UNKNOWN


def percent(value: Any) -> str:
    """A share in percent; one digit more where all or nothing would hide the rest."""
    if not is_number(value):
        return UNKNOWN
    digits = 1 if 0 < abs(value) < 0.01 or 0.99 < value < 1 else 0
    return minus(f"{100 * value:.{digits}f} %")


def interval(low: Any, high: Any, write: Any = number) -> str:
    """The ends of a 95 % interval; nothing where either is unknown."""
    if not (is_number(low) and is_number(high)):
        return ""
    if write in (number, signed):
        size = max(abs(low), abs(high))
        return f"[{write(low, size)}, {write(high, size)}]"
    unit = " %" if write is percent else " points" if write is points else ""
    return f"[{write(low).removesuffix(unit)}, {write(high)}]"


def ends(estimate: Mapping[str, Any] | None, write: Callable[[Any], str]) -> str:
    """The interval of an estimate as JSON has it."""
    return interval(estimate.get("ci_low"), estimate.get("ci_high"), write) if estimate else ""


def p_value(p: Any) -> str:
    """A p-value, to be read after “p”."""
    return "unknown" if not is_number(p) else "< 0.001" if p < 0.001 else f"= {number(p)}"


def minus(text: str) -> str:
    """A number with a real minus sign."""
    return text.replace("-", "−", 1) if text.startswith("-") else text


def duration(seconds: Any) -> str:
    """A time span in its largest two units."""
    if not is_number(seconds):
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def date(timestamp: Any) -> str:
    """A moment, in UTC."""
    if not is_number(timestamp):
        return UNKNOWN
    return datetime.datetime.fromtimestamp(timestamp, tz=datetime.UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def setting(value: Any) -> str:
    """The value of a setting, as a recipe would have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
