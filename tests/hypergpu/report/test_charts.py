import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.report.axis import clock_ticks, ticks
from hypergpu.report.charts.canvas import Scale, time_scale
from hypergpu.report.charts.lines import MOST_POINTS, Series, line_chart
from hypergpu.report.charts.lines import thinned as fewer
from hypergpu.report.charts.stacked_bar_chart import MOST_BARS, shares, stacked_bars
from hypergpu.report.charts.swimlane_chart import Interval, Mark, lanes, strip, thinned
from hypergpu.report.markup import Markup, join, tag


@given(st.text())
def test_any_text_comes_back_as_it_was(text: str) -> None:
    from html import unescape

    assert unescape(tag("p", text)[3:-4]) == text
    assert not set("<>\"'") & set(tag("p", text)[3:-4])
    assert re.fullmatch(r'<p title="[^"<>]*"></p>', tag("p", title=text), re.DOTALL)


def test_markup_is_not_escaped_twice_and_absent_attributes_are_left_out() -> None:
    assert (
        tag("a", tag("b", "&"), None, href=None, hidden=True, open=False, data_at=1.50)
        == '<a hidden data-at="1.5"><b>&amp;</b></a>'
    )
    assert join(Markup("<i>"), "<i>") == "<i>&lt;i&gt;"


def test_a_scale_draws_what_is_outside_at_its_edge() -> None:
    scale = Scale(0.0, 10.0, 100.0, 200.0)
    assert [scale(value) for value in (-5, 0, 5, 10, 50)] == [100, 100, 150, 200, 200]
    assert Scale(3.0, 3.0, 0.0, 10.0)(3.0) == 5.0


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_within_and_are_few(low: float, span: float) -> None:
    found = ticks(low, low + span, 5)
    assert len(found) <= 11
    assert all(low - 1e-6 * span - 1e-6 <= tick <= low + span * (1 + 1e-6) + 1e-6 for tick in found)


@given(st.floats(0.001, 1e8))
def test_times_on_an_axis_are_few(until: float) -> None:
    assert 1 <= len(clock_ticks(0.0, until, 9)) <= 21


def test_stretches_below_a_pixel_become_the_gravest_of_them() -> None:
    fine = [
        Interval(t / 1000, (t + 1) / 1000, "bad" if t == 500 else "fine", "", "", int(t == 500)) for t in range(1000)
    ]
    drawn = thinned(fine, time_scale((0.0, 1000.0)))
    assert len(drawn) <= 3
    assert any(interval.state == "bad" for interval in drawn)


def test_a_gap_between_stretches_stays_a_gap() -> None:
    scale = time_scale((0.0, 1000.0))
    apart = [Interval(0.0, 0.1, "a", "", ""), Interval(900.0, 900.1, "b", "", "")]
    assert thinned(apart, scale) == apart


def test_marks_in_one_place_share_a_dot_and_say_how_many() -> None:
    drawing = strip({"nodes": [Mark(1.0, f"n{i}") for i in range(10)]}, [], (0.0, 10.0), "ten marks")
    assert drawing.count("<circle") == 1
    assert "… and 4 more" in drawing


def test_guides_go_through_all_lanes() -> None:
    drawing = lanes(
        {"a": [Interval(0.0, 5.0, "q-good", "good", "tooltip")]}, (0.0, 5.0), "one lane", [Mark(2.0, "spike")]
    )
    assert drawing.count('class="guide"') == 1


def test_a_line_breaks_at_gaps_and_a_lone_value_is_a_dot() -> None:
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, None), (4.0, 1.0), (5.0, None)]
    drawing = line_chart([Series("s", "mine", points)], "a line", over_time=True)
    assert drawing.count("M") == 1
    assert drawing.count('class="dot mine"') == 1


def test_a_long_line_keeps_its_extremes() -> None:
    points = [(float(x), 100.0 if x == 7_777 else -50.0 if x == 3_333 else 0.0) for x in range(10_000)]
    kept = fewer(points)
    assert len(kept) <= MOST_POINTS
    assert {100.0, -50.0} <= {value for _, value in kept}
    assert kept == sorted(kept)


@pytest.mark.parametrize("rounds", [1, MOST_BARS, 5 * MOST_BARS + 1])
def test_bars_are_bounded_and_show_means(rounds: int) -> None:
    drawing = stacked_bars(
        [(n, {"work": 2.0, "rest": 0.0}) for n in range(1, rounds + 1)], {"work": "w", "rest": "r"}, "bars"
    )
    assert 1 <= drawing.count('class="mark w"') <= MOST_BARS
    assert 'class="mark r"' not in drawing


def test_shares_fill_the_height() -> None:
    drawing = shares([(0.0, {"a": 1, "b": 3}), (5.0, {"a": 0, "b": 0})], {"a": "sa", "b": "sb"}, (0.0, 10.0), "shares")
    heights = [float(h) for h in re.findall(r'height="([0-9.]+)"', drawing)]
    assert heights[1] == pytest.approx(3 * heights[0])
