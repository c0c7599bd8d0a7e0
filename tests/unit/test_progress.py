"""What the view of a run is drawn from."""

from __future__ import annotations

import math

from rlhf_cli.terminal import sparkline


def test_a_course_goes_from_its_lowest_to_its_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0], 20) == "█▁"
    assert sparkline([3, 3, 3], 20) == "▁▁▁"
    assert sparkline([0, math.nan, 1], 20) == "▁ █"
    assert sparkline([], 20) == ""


def test_a_long_course_is_drawn_in_means_that_fit() -> None:
    values = [float(number) for number in range(1000)]
    for width in (1, 7, 48):
        drawn = sparkline(values, width)
        assert len(drawn) <= width
        assert list(drawn) == sorted(drawn)
