"""Charts that every page has: curves over steps, shares with intervals, calibration. Specifications, not yet drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from rlhf_cli.report.curves import Curve, smooth, thin
from rlhf_cli.report.draw import COLOURS

Spec = dict[str, Any]

WIDTH, HEIGHT = 290, 130
SERIES: tuple[tuple[str, list[float]], ...] = (
    ("blue", []),
    ("orange", [6, 3]),
    ("green", [1.5, 3]),
    ("purple", [8, 3, 2, 3]),
)
"""Colour and dashes of the first curve of a chart, the second, …: told apart without colour too."""
_DOT: dict[str, Any] = {
    "size": 54, "filled": True, "color": COLOURS["blue"], "opacity": 1, "stroke": COLOURS["panel"], "strokeWidth": 1.2,
}  # fmt: skip
_SMOOTHED_FROM = 20
"""Points from which a curve is smoothed; fewer are shown as they are."""


@dataclass(frozen=True)
class Marks:
    """Single values in a chart of curves, such as evaluations."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    lows: Sequence[float | None] = ()
    """Lower ends of their intervals, where known."""
    highs: Sequence[float | None] = ()


@dataclass(frozen=True)
class CurveChart:
    """Metrics over the steps of a run."""

    title: str
    curves: dict[str, Curve]
    """By label."""
    marks: list[Marks] = field(default_factory=list)
    is_share: bool = False
    rules: dict[str, float] = field(default_factory=dict)
    """Levels to compare with, by label."""
    is_tiny: bool = False
    """Whether values may be so small that they are written with powers of ten."""


def curve_spec(chart: CurveChart, *, last_step: float, checkpoints: Sequence[int]) -> Spec:
    """Draw curves over steps: raw values faint, their smoothed course over them, evaluations as points.

    Args:
        chart: What to show.
        last_step: Where the horizontal axis ends, the same in all charts of a run.
        checkpoints: Steps to tick.
    """
    layers: list[Any] = []
    for (colour, dash), curve in zip(SERIES, chart.curves.values(), strict=False):
        layers += _curve_layers(curve, COLOURS[colour], dash)
    for (colour, _), shape, marks in zip(SERIES, ("circle", "diamond", "square", "cross"), chart.marks, strict=False):
        layers += _mark_layers(marks, COLOURS[colour] if len(chart.marks) > 1 else COLOURS["ink"], shape)
    for level in chart.rules.values():
        layers.append(
            data([{"y": level}])
            .mark_rule(color=COLOURS["soft"], strokeDash=[3, 3])
            .encode(y="y:Q", x=alt.value(0), x2=alt.value(WIDTH))
        )
    if checkpoints:
        rug = data([{"x": step} for step in checkpoints])
        layers.append(
            rug.mark_point(shape="triangle-up", size=40, filled=True, color=COLOURS["soft"], opacity=1, yOffset=-3)
            .encode(x="x:Q", y=alt.value(HEIGHT))
        )  # fmt: skip
    highest = max((value for each in _values(chart) for value in each), default=1.0)
    scale = alt.Scale(zero=chart.is_share, nice=True)
    if chart.is_share and (highest > 0.5 or highest <= 0):
        scale = alt.Scale(domain=[0, 1])
    whole = alt.layer(*layers).encode(
        x=alt.X("x:Q", title="step", scale=alt.Scale(domain=[0, max(1, last_step)], nice=False),
                axis=alt.Axis(tickCount=4, format="~s", grid=False)),
        y=alt.Y("y:Q", title=None, scale=scale,
                axis=_upright_axis(chart, highest)),
    )  # fmt: skip
    return finished(whole, width=WIDTH, height=HEIGHT)


def _upright_axis(chart: CurveChart, highest: float) -> alt.Axis:
    if chart.is_tiny and highest < 1e-2:
        words = "datum.value === 0 ? '0' : format(datum.value, '~e')"
        return alt.Axis(tickCount=4, minExtent=32, labelExpr=words)
    if not chart.is_share:
        return alt.Axis(tickCount=4, minExtent=32)
    digits = max(0, math.floor(-math.log10(highest))) if highest > 0 else 0  # no two ticks alike
    return alt.Axis(tickCount=4, minExtent=32, format=f".{digits}~%")


def _values(chart: CurveChart) -> list[list[float]]:
    return [*(curve.values.tolist() for curve in chart.curves.values()), *(list(each.values) for each in chart.marks)]


def _curve_layers(curve: Curve, colour: str, dash: list[float]) -> list[Any]:
    shown = rows_of(thin(curve))
    if len(curve) < _SMOOTHED_FROM:
        line = data(shown).mark_line(
            color=colour,
            strokeDash=dash,
            strokeWidth=1.8,
            point={"size": 14, "color": colour, "filled": True, "opacity": 1},
        )
        return [line]
    return [
        data(shown).mark_line(color=colour, strokeWidth=1, opacity=0.45),
        data(rows_of(thin(smooth(curve), 200))).mark_line(color=colour, strokeDash=dash, strokeWidth=2),
    ]


def _mark_layers(marks: Marks, colour: str, shape: str) -> list[Any]:
    rows = [{"x": step, "y": value} for step, value in zip(marks.steps, marks.values, strict=True)]
    layers: list[Any] = []
    ends = [
        {"x": step, "y": low, "y2": high}
        for step, low, high in zip(marks.steps, marks.lows, marks.highs, strict=False)
        if low is not None and high is not None
    ]
    if ends:
        layers.append(data(ends).mark_rule(color=colour, strokeWidth=1.4).encode(x="x:Q", y="y:Q", y2="y2:Q"))
    if len(rows) > 1:
        layers.append(data(rows).mark_line(color=colour, strokeWidth=0.8, opacity=0.6))
    layers.append(
        data(rows).mark_point(
            shape=shape, size=48, filled=True, color=colour, opacity=1, stroke=COLOURS["panel"], strokeWidth=1.2
        )
    )  # fmt: skip
    return layers


def rows_of(curve: Curve) -> list[dict[str, float]]:
    """A curve as the rows of a chart, to six digits, which is finer than a pixel."""
    return [
        {"x": float(f"{step:.6g}"), "y": float(f"{value:.6g}")}
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
    ]


def share_spec(rows: Sequence[tuple[str, dict[str, Any]]], *, level: float | None = None) -> Spec:
    """Shares as points with their intervals, one a row.

    Args:
        rows: Of each its label and its estimate.
        level: A share to compare with.
    """
    found = [
        {"name": label, "place": place, "value": each["value"], "low": each.get("ci_low"), "high": each.get("ci_high"),
         "n": f"of {each.get('n'):,}"}
        for place, (label, each) in enumerate(rows)
    ]  # fmt: skip
    height = 34 * len(rows)
    upright = alt.Y("at:Q", title=None, axis=None, scale=alt.Scale(domain=[len(rows), 0], nice=False))
    across = alt.X("value:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%", tickCount=5))
    base = data(found).transform_calculate(at="datum.place + 0.7").encode(y=upright)
    words = data(found).transform_calculate(at="datum.place + 0.27").encode(y=upright)
    layers: list[Any] = [
        base.mark_rule(strokeWidth=2, color=COLOURS["blue"]).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(**_DOT).encode(x=across),
        words.mark_text(align="left", baseline="middle").encode(x=alt.value(2), text="name:N"),
        words.mark_text(align="right", baseline="middle", color=COLOURS["soft"])
        .encode(x=alt.value(WIDTH - 2), text="n:N"),
    ]  # fmt: skip
    if level is not None:
        rule = data([{"value": level}]).mark_rule(color=COLOURS["soft"], strokeDash=[3, 3])
        layers.insert(0, rule.encode(x=across, y=alt.value(0), y2=alt.value(height)))
    return finished(alt.layer(*layers), width=WIDTH, height=height)


def reliability_spec(bins: Sequence[dict[str, Any]]) -> Spec:
    """Probabilities that were given against shares that won, with how many pairs each is of below.

    Args:
        bins: Of each `probability`, `wins`, `n`, and the interval's `low` and `high`.
    """
    across = alt.X("probability:Q", title="probability given to the higher score", scale=alt.Scale(domain=[0.5, 1]),
                   axis=alt.Axis(format=".0%", tickCount=5, grid=False))  # fmt: skip
    upright = alt.Y(
        "wins:Q",
        title="share that was chosen",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format=".0%", tickCount=5),
    )
    base = data(list(bins))
    even = data([{"probability": 0.5, "wins": 0.5}, {"probability": 1, "wins": 1}])
    upper = alt.layer(
        even.mark_line(color=COLOURS["soft"], strokeDash=[3, 3], strokeWidth=1).encode(x=across, y=upright),
        base.mark_rule(color=COLOURS["blue"], strokeWidth=1.4).encode(x=across, y="low:Q", y2="high:Q"),
        base.mark_line(color=COLOURS["blue"], strokeWidth=1, opacity=0.5).encode(x=across, y=upright),
        base.mark_point(**_DOT).encode(x=across, y=upright),
    ).properties(width=WIDTH, height=190)
    counts = (
        base.mark_bar(width=9, color=COLOURS["soft"])
        .encode(
            x=alt.X("probability:Q", title=None, scale=alt.Scale(domain=[0.5, 1]), axis=None),
            y=alt.Y("n:Q", title="pairs", axis=alt.Axis(tickCount=2)),
        )
        .properties(width=WIDTH, height=36)
    )
    return finished(alt.vconcat(upper, counts, spacing=6))


def data(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """A chart of rows, with no mark yet.

    A plain mapping of a tuple: Altair checks every row of its own class, and copies lists at every step.
    """
    return alt.Chart({"values": tuple(dict(row) for row in rows)})


def finished(chart: Any, *, width: int | None = None, height: int | None = None) -> Spec:
    """The specification of a chart, in the page's own look."""
    if width is not None and height is not None:
        chart = chart.properties(width=width, height=height)
    quiet = {
        "labelColor": COLOURS["soft"], "titleColor": COLOURS["soft"], "gridColor": COLOURS["line"],
        "domain": False, "ticks": False, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
        "labelPadding": 5, "gridWidth": 1, "labelFont": "sans-serif", "titleFont": "sans-serif",
    }  # fmt: skip
    whole = chart.configure(
        aria=False,
        background="transparent",
        padding=4,
        axis=quiet,
        view={"stroke": None},
        text={"font": "sans-serif", "fontSize": 11, "color": COLOURS["ink"]},
    )
    return dict(whole.to_dict(validate=False))
