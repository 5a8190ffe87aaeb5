"""Line charts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypergpu.common.text import figure, percent
from hypergpu.report.charts.canvas import AXIS, HALF, RIGHT, Scale, count_axis, drawing, time_axis, value_axis
from hypergpu.report.markup import Markup, join, tag

HEIGHT = 230
LEFT = 58
TOP = 10
MOST_POINTS = 500

Point = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; None among the values is a gap."""

    name: str
    style: str
    """Class in the style sheet."""
    points: Sequence[Point]


def line_chart(series: Sequence[Series], summary: str, *, over_time: bool, share: bool = False) -> Markup:
    """Return a chart of lines over seconds or rounds. `share` sets the top to 1 if the values come near it."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points if y is not None]
    if not ys:
        return empty("Nothing was measured.")
    bottom = HEIGHT - AXIS
    x = Scale(0.0 if over_time else min(xs), max(xs), LEFT, HALF - RIGHT)
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    y = Scale(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin, bottom, TOP)
    if share and high > 0.8:
        y = Scale(y.low, 1.0, bottom, TOP)
    axis: Callable[..., Markup] = time_axis if over_time else count_axis
    content = [axis(x, TOP, bottom, 5), value_axis(y, LEFT, HALF - RIGHT, share=share)]
    content += [_line(each, x, y) for each in reversed(series)]
    content += [_hover(each, x, y, over_time=over_time, share=share) for each in reversed(series)]
    return drawing(HALF, HEIGHT, summary, *content)


def empty(why: str) -> Markup:
    """Return a placeholder for a chart without data."""
    return tag("p", why, class_="empty")


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    """Return the line, broken at gaps; a value between two gaps is a dot."""
    pieces: list[list[str]] = [[]]
    for at, value in thinned(series.points):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x(at):.1f} {y(value):.1f}")
    path = " ".join("M" + "L".join(piece) for piece in pieces if len(piece) > 1)
    dots = [piece[0].split() for piece in pieces if len(piece) == 1]
    return join(
        tag("path", class_=f"line {series.style}", d=path) if path else None,
        *(tag("circle", class_=f"dot {series.style}", cx=cx, cy=cy, r=3) for cx, cy in dots),
    )


def _hover(series: Series, x: Scale, y: Scale, *, over_time: bool, share: bool) -> Markup:
    """Return invisible targets with tooltips of the exact figures."""
    shown = [(at, value) for at, value in thinned(series.points) if value is not None]
    spots = []
    for at, value in shown:
        where = f"{at:.1f} s" if over_time else f"round {at:g}"
        tooltip = f"{series.name}, {where}: {percent(value) if share else figure(value)}"
        spots.append(tag("circle", class_=f"spot {series.style}", cx=x(at), cy=y(value), r=5, data_tooltip=tooltip))
    return join(*spots)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `MOST_POINTS` points: the lowest and the highest of each interval, in order."""
    if len(points) <= MOST_POINTS:
        return list(points)
    width = -(-2 * len(points) // MOST_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), width):
        piece = points[start : start + width]
        known = [(value, number) for number, (_, value) in enumerate(piece) if value is not None]
        if not known:
            kept.append(piece[0])
            continue
        kept += [piece[number] for number in sorted({min(known)[1], max(known)[1]})]
    return kept
