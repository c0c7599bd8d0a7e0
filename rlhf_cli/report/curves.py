"""The metrics of a run as curves: read from metrics.jsonl, smoothed, and thinned without losing a peak (pure)."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 500
"""Of one curve on the page."""
_TREND_BLOCKS = 20
_SIGNIFICANT = 0.05

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One metric over the steps."""

    steps: Floats
    values: Floats
    lost: int = 0
    """Values that were not finite, and are left out."""

    def __len__(self) -> int:
        return len(self.values)


def read_curves(path: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Curve]:
    """Read metrics.jsonl: what was cut off in mid-line is left out.

    Args:
        path: The file, which may not be there.
        is_wanted: Which metrics to keep, by name; those that have a number.
    """
    layouts: dict[tuple[str, ...], _Layout] = {}
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                step = float(record["step"])
            except (ValueError, KeyError, TypeError):
                continue
            keys = tuple(record)
            if keys not in layouts:
                layouts[keys] = _Layout([name for name in keys if name != "step" and is_wanted(name)])
            layouts[keys].add(step, record)
    names = sorted({name for layout in layouts.values() for name in layout.names})
    curves = {name: _curve([layout for layout in layouts.values() if name in layout.names], name) for name in names}
    return {name: curve for name, curve in curves.items() if len(curve)}


class _Layout:
    """Lines with the same metrics, kept as one table: a long run has millions of values."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.steps: array[float] = array("d")
        self._values: array[float] = array("d")

    def add(self, step: float, record: Mapping[str, Any]) -> None:
        self.steps.append(step)
        row = [record[name] for name in self.names]
        try:
            self._values.extend(row)
        except (TypeError, OverflowError):  # null stands for what is not finite
            del self._values[(len(self.steps) - 1) * len(self.names) :]
            self._values.extend(value if isinstance(value, float) else _as_float(value) for value in row)

    def column(self, name: str) -> Floats:
        return np.array(self._values).reshape(len(self.steps), -1)[:, self.names.index(name)]


def _as_float(value: Any) -> float:
    try:
        return float(value) if type(value) is int else math.nan
    except OverflowError:
        return math.nan


def _curve(layouts: Sequence[_Layout], name: str) -> Curve:
    steps = np.concatenate([np.array(layout.steps) for layout in layouts])
    values = np.concatenate([layout.column(name) for layout in layouts])
    known = np.isfinite(values) & np.isfinite(steps)
    order = np.argsort(steps[known], kind="stable")
    return Curve(steps[known][order], values[known][order], int((~known).sum()))


def thin(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """Keep the first and the last point, and of every stretch between them its lowest and its highest."""
    count = len(curve)
    if count <= most:
        return curve
    kept = {0, count - 1}
    for part in np.array_split(np.arange(1, count - 1), max(1, (most - 2) // 2)):
        kept |= {int(part[curve.values[part].argmin()]), int(part[curve.values[part].argmax()])}
    index = np.array(sorted(kept))
    return Curve(curve.steps[index], curve.values[index], curve.lost)


def smooth(curve: Curve, window: int | None = None) -> Curve:
    """The mean over a window around each point, narrower towards the ends, so that both ends are as they are.

    Args:
        curve: What to smooth.
        window: Points on each side; None is a thirtieth of the curve.
    """
    count = len(curve)
    width = max(1, count // 30) if window is None else window
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    places = np.arange(count)
    reach = np.minimum(width, np.minimum(places, count - 1 - places))
    means = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    return Curve(curve.steps, means, curve.lost)


def tail(curve: Curve) -> float:
    """The mean of a curve's last tenth."""
    return float(curve.values[-max(1, len(curve) // 10) :].mean())


class Trend(NamedTuple):
    """Where a curve goes."""

    first: float
    """Mean of its first tenth."""
    last: float
    """Mean of its last tenth."""
    p: float
    """Of Kendall's test against no trend."""

    @property
    def rises(self) -> bool:
        """Whether it is shown to rise."""
        return self.p < _SIGNIFICANT and self.last > self.first

    @property
    def falls(self) -> bool:
        """Whether it is shown to fall."""
        return self.p < _SIGNIFICANT and self.last < self.first


def trend(curve: Curve) -> Trend:
    """Where a curve goes, and whether chance would do for it (Kendall 1938), on the means of up to 20 stretches.

    Neighbouring points of a training curve resemble each other; their means over stretches do less.
    """
    from scipy import stats

    first, last = float(curve.values[: max(1, len(curve) // 10)].mean()), tail(curve)
    means = [part.mean() for part in np.array_split(curve.values, min(_TREND_BLOCKS, len(curve)))]
    if len(means) < 5 or np.ptp(means) == 0:
        return Trend(first, last, 1.0)
    return Trend(first, last, float(stats.kendalltau(np.arange(len(means)), means).pvalue))


def constant(curves: Iterable[Curve]) -> bool:
    """Whether none of them ever changes."""
    return all(len(curve) == 0 or np.ptp(curve.values) == 0 for curve in curves)
