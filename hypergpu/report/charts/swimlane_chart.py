"""Swimlane chart: rows over time, with states as coloured intervals and events as marks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hypergpu.report.charts.canvas import AXIS, LABELS, WIDE, Scale, drawing, time_axis, time_scale
from hypergpu.report.markup import Markup, join, tag

ROW = 22
GAP = 5
LEAST_PIXELS = 0.8
"""Shorter intervals are merged, with the most severe state."""
PIXELS_PER_CHARACTER = 7.0
MOST_GUIDES = 40


@dataclass(frozen=True, slots=True)
class Interval:
    """State of a row from `start` to `end`, in seconds."""

    start: float
    end: float
    state: str
    """Class in the style sheet, which sets the colour."""
    label: str
    """Text inside the interval, if there is room."""
    tooltip: str
    severity: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """Event at one time."""

    at: float
    tooltip: str
    target: str | None = None
    """HTML id of the element with details."""


def lanes(
    rows: Mapping[str, Sequence[Interval]], span: tuple[float, float], summary: str, guides: Sequence[Mark] = ()
) -> Markup:
    """Return one row of intervals per name; `guides` are lines through all rows."""
    scale = time_scale(span)
    height = len(rows) * (ROW + GAP)
    content = [time_axis(scale, 0, height), *_names(rows)]
    for number, intervals in enumerate(rows.values()):
        y = number * (ROW + GAP) + GAP / 2
        content += [_interval(each, scale, y) for each in thinned(intervals, scale)]
    for guide in guides[:MOST_GUIDES]:
        x = scale(guide.at)
        content.append(tag("line", class_="guide", x1=x, x2=x, y1=0, y2=height, data_tooltip=guide.tooltip))
    return drawing(WIDE, height + AXIS, summary, *content, time=scale)


def strip(
    rows: Mapping[str, Sequence[Mark]], rounds: Sequence[Interval], span: tuple[float, float], summary: str
) -> Markup:
    """Return the rounds as a band, and one row of marks per kind of event."""
    scale = time_scale(span)
    named = {"rounds": (), **rows}
    height = len(named) * (ROW + GAP)
    content = [time_axis(scale, 0, height), *_names(named)]
    content += [_interval(each, scale, GAP / 2) for each in thinned(rounds, scale)]
    for number, (name, marks) in enumerate(rows.items(), start=1):
        y = number * (ROW + GAP) + (ROW + GAP) / 2
        content.append(tag("line", class_="rail", x1=LABELS, x2=scale.end, y1=y, y2=y))
        content += _marks(marks, scale, y, f"e-{name.replace(' ', '-')}")
    return drawing(WIDE, height + AXIS, summary, *content, time=scale)


def thinned(intervals: Iterable[Interval], scale: Scale) -> list[Interval]:
    """Return the intervals with neighbours that are too short to see merged, with the most severe state."""
    kept: list[Interval] = []
    for each in intervals:
        before = kept[-1] if kept else None
        if (
            before is None
            or scale(each.end) - scale(before.start) >= LEAST_PIXELS
            or scale(before.end) < scale(each.start) - 0.1
        ):
            kept.append(each)
        else:
            most_severe = max(before, each, key=lambda interval: interval.severity)
            kept[-1] = replace(most_severe, start=before.start, end=each.end)
    return kept


def _interval(each: Interval, scale: Scale, y: float) -> Markup:
    x = scale(each.start)
    width = max(scale(each.end) - x, LEAST_PIXELS)
    box = tag(
        "rect",
        class_=f"mark {each.state}",
        x=x,
        y=y,
        width=width,
        height=ROW,
        rx=2 if width > 6 else None,
        data_tooltip=each.tooltip,
    )
    if not each.label or width < len(each.label) * PIXELS_PER_CHARACTER + 6:
        return box
    return join(box, tag("text", each.label, class_=f"inside on-{each.state}", x=x + width / 2, y=y + ROW / 2 + 4))


def _marks(marks: Sequence[Mark], scale: Scale, y: float, style: str) -> list[Markup]:
    """Return one mark per place: events within two pixels share it."""
    places: dict[int, list[Mark]] = {}
    for mark in marks:
        places.setdefault(round(scale(mark.at) / 3), []).append(mark)
    drawn = []
    for here in places.values():
        first = here[0]
        more = f"\n… and {len(here) - 6} more" if len(here) > 6 else ""
        tooltip = "\n".join(mark.tooltip for mark in here[:6]) + more
        size = 4.0 if len(here) == 1 else min(4.0 + len(here) / 3, 8.0)
        dot = tag("circle", class_=f"event {style}", cx=scale(first.at), cy=y, r=size, data_tooltip=tooltip)
        drawn.append(tag("a", dot, href=f"#{first.target}", tabindex=-1) if first.target else dot)
    return drawn


def _names(rows: Iterable[str]) -> list[Markup]:
    """Return row labels, shortened in the middle if they do not fit."""
    drawn = []
    for number, name in enumerate(rows):
        shown = name if len(name) <= 17 else f"{name[:8]}…{name[-8:]}"
        y = number * (ROW + GAP) + (ROW + GAP) / 2 + 4
        drawn.append(tag("text", shown, class_="row", x=LABELS - 10, y=y, data_tooltip=name if shown != name else None))
    return drawn
