"""Parts that all charts share: scales, axes, and the figure around a chart."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypergpu.common.text import figure
from hypergpu.report.axis import clock, clock_ticks, ticks
from hypergpu.report.markup import Markup, join, tag

WIDE = 1080
"""Width in pixels of a chart that fills the page."""
HALF = 524
"""Width in pixels of a chart that shares a row with another."""
LABELS = 132
"""Width in pixels of the row names of a wide chart."""
RIGHT = 14
AXIS = 26
"""Height in pixels of the axis below a chart."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear scale from data between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; values outside the scale are at its edge."""
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def time_scale(span: tuple[float, float]) -> Scale:
    """Return the time scale of a wide chart, for a span in seconds."""
    return Scale(span[0], span[1] if span[1] > span[0] else span[0] + 1.0, LABELS, WIDE - RIGHT)


def time_axis(scale: Scale, top: float, bottom: float, about: int = 9) -> Markup:
    """Return a time axis, with grid lines from `top` to `bottom`."""
    return _x_axis(scale, [(at, clock(at)) for at in clock_ticks(scale.low, scale.high, about)], top, bottom)


def count_axis(scale: Scale, top: float, bottom: float, about: int = 7) -> Markup:
    """Return an axis of whole numbers, such as rounds."""
    at = [each for each in ticks(scale.low, scale.high, about) if each == int(each)]
    return _x_axis(scale, [(each, f"{each:,.0f}") for each in at], top, bottom)


def value_axis(scale: Scale, left: float, right: float, *, share: bool = False) -> Markup:
    """Return the axis of values at the left, as percentages if they are shares, with grid lines to `right`."""
    lines = []
    for at in ticks(scale.low, scale.high, 4):
        y = scale(at)
        lines.append(tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        label = f"{100 * at:g} %" if share else figure(at, 3)
        lines.append(tag("text", label, class_="tick end", x=left - 8, y=y + 4))
    return join(*lines)


def drawing(width: int, height: float, summary: str, *content: Markup, time: Scale | None = None) -> Markup:
    """Return an SVG image with its text alternative. With `time`, the page's crosshair runs through it."""
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
    """Return a chart with its title and caption."""
    head = tag("figcaption", tag("h3", title), tag("p", summary, aria_hidden="true"))
    return tag("figure", head, legend, tag("div", chart, class_="scroll"))


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return a legend: style classes and their meanings."""
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
