"""Charts of evaluations: win rates, reward against KL, scores before and after. Specifications, not yet drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from rlhf_cli.report.charts import HEIGHT, WIDTH, Spec, data, finished
from rlhf_cli.report.curves import Floats
from rlhf_cli.report.draw import COLOURS

_WIDE = 580
_BINS = 24
_MOST_DOTS = 400


def win_spec(contests: Sequence[Mapping[str, Any]]) -> Spec:
    """Wins, ties and losses as one bar each, and the win rate with its interval over them.

    Args:
        contests: Of each `label`, `wins`, `ties`, `losses`, `prompts`, and the estimate `win_rate`.
    """
    bars, points, words = [], [], []
    for place, contest in enumerate(contests):
        total = max(1, contest["wins"] + contest["ties"] + contest["losses"])
        start = 0.0
        for kind in ("wins", "ties", "losses"):
            share = contest[kind] / total
            bars.append({"from": start, "to": start + share, "kind": kind, "y": place + 0.45, "y2": place + 0.85})
            start += share
        rate = contest["win_rate"]
        points.append({"x": rate["value"], "low": rate.get("ci_low"), "high": rate.get("ci_high"), "y": place + 0.65})
        words.append({"text": contest["label"], "n": f"{contest['prompts']:,} prompts", "y": place + 0.25})
    colours = {"wins": COLOURS["blue"], "ties": COLOURS["soft"], "losses": COLOURS["line"]}
    upright = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[len(contests), 0], nice=False))
    across = alt.X(
        "x:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%", tickCount=5, grid=False)
    )
    height, width = 52 * len(contests), WIDTH
    layers: list[Any] = [
        data([bar for bar in bars if bar["kind"] == kind])
        .mark_rect(color=colour, opacity=0.4 if kind != "losses" else 1)
        .encode(x=alt.X("from:Q"), x2="to:Q", y=upright, y2="y2:Q")
        for kind, colour in colours.items()
    ]
    layers += [
        data([{"x": 0.5, "y": bar["y"] - 0.07, "y2": bar["y2"] + 0.07} for bar in bars[::3]])
        .mark_rule(color=COLOURS["ink"], strokeDash=[3, 3])
        .encode(x=across, y=upright, y2="y2:Q"),
        data(points).mark_rule(color=COLOURS["ink"], strokeWidth=2).encode(x="low:Q", x2="high:Q", y=upright),
        data(points)
        .mark_point(size=60, filled=True, color=COLOURS["ink"], opacity=1, stroke=COLOURS["panel"], strokeWidth=1.4)
        .encode(x=across, y=upright),
        data(words).mark_text(align="left", baseline="middle").encode(x=alt.value(0), y=upright, text="text:N"),
        data(words)
        .mark_text(align="right", baseline="middle", color=COLOURS["soft"])
        .encode(x=alt.value(width), y=upright, text="n:N"),
    ]  # fmt: skip
    return finished(alt.layer(*layers), width=width, height=height)


def frontier_spec(
    lines: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], *, best: str | None, unit: str
) -> Spec:  # fmt: skip
    """What was gained against √KL (Gao et al. 2023): by the training reward dashed, by the held-out judge solid.

    Args:
        lines: Of each its look, `training`, `held_out` or either followed by ` best of n`, and its points: `kl`,
            `gain`, its interval `low` and `high`, `name`.
        best: Name of the checkpoint to mark.
        unit: Of the gains.
    """
    looks = {
        "training": ("orange", [6, 3], "diamond", True), "held_out": ("blue", [], "circle", True),
        "training best of n": ("orange", [1.5, 3], "diamond", False),
        "held_out best of n": ("blue", [1.5, 3], "circle", False),
    }  # fmt: skip
    far = max((point["kl"] for _, points in lines for point in points), default=1.0)
    ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= 1.05 * far]
    across = alt.X("kl:Q", title="KL from the reference, in nats a response (square-root scale)",
                   scale=alt.Scale(type="sqrt", domainMin=0, nice=False),
                   axis=alt.Axis(values=ticks, grid=False))  # fmt: skip
    upright = alt.Y("gain:Q", title=unit, axis=alt.Axis(tickCount=5))
    layers: list[Any] = [
        data([{"gain": 0}])
        .mark_rule(color=COLOURS["soft"], strokeDash=[3, 3])
        .encode(y=upright, x=alt.value(0), x2=alt.value(_WIDE))
    ]
    for look, points in lines:
        colour, dash, shape, filled = looks[look]
        base = data([{**point, "kl": max(0.0, point["kl"])} for point in points])
        ink = COLOURS[colour]
        inside = ink if filled else COLOURS["paper"]
        layers += [
            base.mark_rule(color=ink, opacity=0.5, strokeWidth=1.4).encode(x=across, y="low:Q", y2="high:Q"),
            base.mark_line(color=ink, strokeDash=dash, strokeWidth=2 if filled else 1.2)
            .encode(x=across, y=upright, order="kl:Q"),
            base.mark_point(shape=shape, size=60, filled=filled, color=ink, opacity=1, fill=inside)
            .encode(x=across, y=upright),
        ]  # fmt: skip
    marked = [point for look, points in lines for point in points if look == "held_out" and point["name"] == best]
    layers += [
        data(marked)
        .mark_point(size=260, color=COLOURS["ink"], strokeWidth=1.5, filled=False)
        .encode(x=across, y=upright),
        data(marked).mark_text(dy=-18, fontWeight="bold").encode(x=across, y=upright, text="name:N"),
    ]
    return finished(alt.layer(*layers), width=_WIDE, height=280)


def before_after_spec(before: Floats, after: Floats) -> Spec:
    """Scores of two models' answers to the same prompts, as shares of them."""
    both = np.concatenate([before, after])
    edges = np.histogram_bin_edges(both, bins=_BINS)
    layers: list[Any] = []
    for values, colour, dash in ((before, "soft", [4, 3]), (after, "blue", [])):
        counts, _ = np.histogram(values, bins=edges)
        steps = [
            {"x": float(edge), "y": float(count / len(values))}
            for edge, count in zip(edges, [*counts, counts[-1]], strict=True)
        ]
        steps = [{"x": steps[0]["x"], "y": 0.0}, *steps, {"x": steps[-1]["x"], "y": 0.0}]
        if colour == "blue":
            layers.append(
                data(steps)
                .mark_area(interpolate="step-after", color=COLOURS[colour], opacity=0.15)
                .encode(x="x:Q", y="y:Q")
            )
        layers.append(
            data(steps)
            .mark_line(interpolate="step-after", color=COLOURS[colour], strokeDash=dash, strokeWidth=1.8)
            .encode(x="x:Q", y="y:Q")
        )
        mean = data([{"x": float(values.mean())}])
        layers.append(
            mean.mark_tick(orient="vertical", color=COLOURS[colour], thickness=2.5, size=12).encode(
                x="x:Q", y=alt.value(HEIGHT)
            )
        )
    return finished(_shares_over("score", layers), width=WIDTH, height=HEIGHT)


def differences_spec(differences: Floats) -> Spec:
    """How much better each answer scores than the baseline's to the same prompt."""
    edges = _edges_around_zero(differences)
    counts, _ = np.histogram(differences, bins=edges)
    bars = [
        {"x": float(left), "x2": float(right), "y": float(count / len(differences)), "zero": 0}
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    sides = (
        ([bar for bar in bars if bar["x"] >= 0], "blue", 0.75),
        ([bar for bar in bars if bar["x"] < 0], "orange", 0.35),
    )
    layers: list[Any] = [
        data(side)
        .mark_rect(color=COLOURS[colour], opacity=opacity, stroke=COLOURS["paper"], strokeWidth=1)
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="zero:Q")
        for side, colour, opacity in sides
        if side
    ]
    rules: tuple[tuple[float, str, list[int]], ...] = ((0.0, "ink", [3, 3]), (float(differences.mean()), "ink", []))
    layers += [
        data([{"x": at}])
        .mark_rule(color=COLOURS[colour], strokeDash=dash, strokeWidth=1.5)
        .encode(x="x:Q", y=alt.value(0), y2=alt.value(HEIGHT))
        for at, colour, dash in rules
    ]
    return finished(_shares_over("score less the baseline's", layers), width=WIDTH, height=HEIGHT)


def _edges_around_zero(values: Floats) -> Floats:
    """Edges of equal bins, one of which is 0, so that no bin holds gains and losses."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    width = (high - low) / _BINS or 1.0
    return width * np.arange(math.floor(low / width), max(1, math.ceil(high / width)) + 1, dtype=np.float64)


def _shares_over(title: str, layers: Sequence[Any]) -> Any:
    return alt.layer(*layers).encode(
        x=alt.X("x:Q", title=title, scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(tickCount=5, grid=False)),
        y=alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=3, format=".0%")),
    )


def length_spec(before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]]) -> Spec:
    """Length in tokens and score of every answer, of the baseline hollow."""
    layers: list[Any] = []
    for dots, colour, filled, shape in ((before, "soft", False, "square"), (after, "blue", True, "circle")):
        index = np.random.default_rng(0).permutation(len(dots))[:_MOST_DOTS]
        rows = [{"x": dots[place][0], "y": float(f"{dots[place][1]:.5g}")} for place in index.tolist()]
        layers.append(
            data(rows)
            .mark_point(size=22, filled=filled, color=COLOURS[colour], opacity=0.6, shape=shape, strokeWidth=1)
            .encode(
                x=alt.X("x:Q", title="tokens", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5, grid=False)),
                y=alt.Y("y:Q", title="score", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4)),
            )
        )
    return finished(alt.layer(*layers), width=WIDTH, height=170)
