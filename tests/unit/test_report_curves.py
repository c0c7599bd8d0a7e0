"""Curves of a report: read whatever was logged, thinned without losing a peak, never called a trend by chance."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rlhf_cli.report.charts import CurveChart, curve_spec
from rlhf_cli.report.curves import MOST_POINTS, Curve, read_curves, smooth, thin, trend
from rlhf_cli.report.draw import Pen


def curve(values: np.ndarray) -> Curve:
    return Curve(np.arange(len(values), dtype=np.float64), values.astype(np.float64))


@pytest.mark.parametrize("count", [1, 2, 499, 500, 501, 502, 1003, 100_000])
def test_thinning_keeps_both_ends_every_extreme_and_the_order(count: int) -> None:
    noise = np.random.default_rng(count).normal(size=count)
    noise[count // 3] = 50
    noise[count // 2] = -50 if count > 2 else noise[count // 2]
    whole = curve(noise)
    few = thin(whole)
    assert len(few) <= MOST_POINTS
    assert (few.steps[0], few.steps[-1]) == (0, count - 1)
    assert (few.values.max(), few.values.min()) == (noise.max(), noise.min())
    assert (np.diff(few.steps) > 0).all()
    assert (noise[few.steps.astype(int)] == few.values).all()


def test_a_peak_in_every_stretch_survives() -> None:
    values = np.zeros(10_000)
    values[::1000] = 1
    assert thin(curve(values)).values.sum() == 10


def test_smoothing_keeps_length_ends_and_a_straight_line() -> None:
    line = np.linspace(3, 9, 200)
    assert np.allclose(smooth(curve(line)).values, line)
    noise = np.random.default_rng(0).normal(size=300)
    smoothed = smooth(curve(noise)).values
    assert (smoothed[0], smoothed[-1]) == pytest.approx((noise[0], noise[-1]))
    assert smoothed[50:250].std() < 0.5 * noise.std()


def test_a_broken_file_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [{"step": 2, "loss": 1.5, "note": "text", "list": [1]}, {"step": 1, "loss": 2}, {"step": 3, "loss": None},
             {"step": 4, "loss": 10**400}]  # fmt: skip
    file.write_text("\n".join([*map(json.dumps, lines), "[]", "null", '{"loss": 1}', '{"step": 4, "lo']))
    found = read_curves(file)
    assert list(found) == ["loss"]
    assert found["loss"].steps.tolist() == [1, 2]
    assert found["loss"].values.tolist() == [2, 1.5]
    assert found["loss"].lost == 2
    assert read_curves(file, lambda name: name != "loss") == {}
    assert read_curves(tmp_path / "none.jsonl") == {}


def test_noise_is_no_trend_and_a_slope_is_one() -> None:
    called = [trend(curve(np.random.default_rng(seed).normal(size=400))) for seed in range(100)]
    assert sum(each.rises or each.falls for each in called) <= 12  # 5 are expected
    slope = np.linspace(0, 1, 400)
    noise = np.random.default_rng(0).normal(size=400)
    assert trend(curve(slope + 0.5 * noise)).rises
    assert trend(curve(0.5 * noise - slope)).falls
    few = trend(curve(np.array([1.0, 2.0, 3.0])))
    assert few.p == 1


def test_ticks_say_what_they_stand_for_however_small_the_values() -> None:
    shares = [0.9, 0.3, 0.05, 0.012, 0.0007]
    rates = [2e-4, 5e-6, 1e-3]
    charts = [CurveChart("share", {"": curve(np.linspace(0, top, 9))}, is_share=True) for top in shares]
    charts += [CurveChart("rate", {"": curve(np.full(9, rate))}, is_tiny=True) for rate in rates]
    with Pen() as pen:
        drawn = pen.draw([(chart.title, curve_spec(chart, last_step=8, checkpoints=[])) for chart in charts])
    texts = [re.findall(r"<text[^>]*>([^<]+)</text>", svg) for svg in drawn]
    for top, told in zip(shares, texts[: len(shares)], strict=True):
        labels = [float(text[:-1]) for text in told if text.endswith("%")]
        assert len(labels) == len(set(labels)) > 2
        assert max(labels) == pytest.approx(100 * top, rel=0.3)
    for rate, told in zip(rates, texts[len(shares) :], strict=True):
        assert rate in [float(text) for text in told if "e" in text and text != "step"]
