"""What all charts share: the scale from data to pixels, axes, and the figure around a drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypergpu.common.text import figure
from hypergpu.report.axis import clock, clock_ticks, ticks
from hypergpu.report.markup import Markup, join, tag

WIDE = 1080
"""Pixels across a chart that has the page to itself."""
HALF = 524
"""Pixels across a chart that shares a row with another."""
LABELS = 132
"""Pixels left of a wide chart, for the names of its rows."""
RIGHT = 14
AXIS = 26
"""Pixels below a chart, for its axis."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Data from `low` to `high` lies from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; what lies outside is drawn at the edge."""
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def time_scale(span: tuple[float, float]) -> Scale:
    """A wide chart's axis of time, from the first of these seconds to the second."""
    return Scale(span[0], span[1] if span[1] > span[0] else span[0] + 1.0, LABELS, WIDE - RIGHT)


def time_axis(scale: Scale, top: float, bottom: float, about: int = 9) -> Markup:
    """Times of day one can count in, with grid lines from `top` to `bottom`."""
    return _x_axis(scale, [(at, clock(at)) for at in clock_ticks(scale.low, scale.high, about)], top, bottom)


def count_axis(scale: Scale, top: float, bottom: float, about: int = 7) -> Markup:
    """Whole numbers, such as rounds."""
    at = [each for each in ticks(scale.low, scale.high, about) if each == int(each)]
    return _x_axis(scale, [(each, f"{each:,.0f}") for each in at], top, bottom)


def value_axis(scale: Scale, left: float, right: float, *, share: bool = False) -> Markup:
    """Figures along the left edge, as percentages if they are shares, with grid lines to `right`."""
    lines = []
    for at in ticks(scale.low, scale.high, 4):
        y = scale(at)
        lines.append(tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        label = f"{100 * at:g} %" if share else figure(at, 3)
        lines.append(tag("text", label, class_="tick end", x=left - 8, y=y + 4))
    return join(*lines)


def drawing(width: int, height: float, summary: str, *content: Markup, time: Scale | None = None) -> Markup:
    """An SVG image with its text alternative. With `time`, the page's crosshair runs through it."""
    where = (
        {} if time is None else {"data_t0": time.low, "data_t1": time.high, "data_x0": time.start, "data_x1": time.end}
    )
    return tag(
        "svg",
        *content,
        viewBox=f"0 0 {width} {height:g}",
        role="img",
        aria_label=summary,
        class_="chart wide" if width == WIDE else "chart",
        **where,
    )


def framed(title: str, summary: str, chart: Markup, legend: Markup | None = None) -> Markup:
    """A chart under its title and what it says in words, which a screen reader hears with the drawing."""
    head = tag("figcaption", tag("h3", title), tag("p", summary, aria_hidden="true"))
    return tag("figure", head, legend, tag("div", chart, class_="scroll"))


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Classes and what they stand for."""
    swatch = [
        tag(
            "li",
            tag(
                "svg",
                tag("rect", class_=f"mark {name}", width=14, height=14, rx=3),
                class_="swatch",
                viewBox="0 0 14 14",
                aria_hidden="true",
            ),
            label,
        )
        for name, label in entries
    ]
    return tag("ul", *swatch, class_="legend")


def _x_axis(scale: Scale, marks: Sequence[tuple[float, str]], top: float, bottom: float) -> Markup:
    lines = []
    for at, label in marks:
        x = scale(at)
        where = "end" if x > scale.end - 12 else "middle"
        lines.append(tag("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom))
        lines.append(tag("text", label, class_=f"tick {where}", x=x, y=bottom + 17))
    return join(*lines)
