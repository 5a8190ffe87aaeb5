"""Rows over time: states as coloured stretches, and events as marks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hypergpu.report.charts.canvas import AXIS, LABELS, WIDE, Scale, drawing, time_axis, time_scale
from hypergpu.report.markup import Markup, join, tag

ROW = 22
GAP = 5
LEAST_PIXELS = 0.8
"""Shorter stretches are drawn together, under the gravest of them."""
PIXELS_PER_CHARACTER = 7.0
MOST_GUIDES = 40


@dataclass(frozen=True, slots=True)
class Stretch:
    """One state of one row, from `start` to `end` seconds."""

    start: float
    end: float
    state: str
    """Names its colour: a class of the style sheet."""
    label: str
    """Written into it where there is room."""
    tip: str
    gravity: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at one time."""

    at: float
    tip: str
    target: str | None = None
    """The id of the element that tells more."""


def lanes(
    rows: Mapping[str, Sequence[Stretch]], span: tuple[float, float], summary: str, guides: Sequence[Mark] = ()
) -> Markup:
    """One row of stretches for each name; `guides` are lines through all of them."""
    scale = time_scale(span)
    height = len(rows) * (ROW + GAP)
    content = [time_axis(scale, 0, height), *_names(rows)]
    for number, stretches in enumerate(rows.values()):
        y = number * (ROW + GAP) + GAP / 2
        content += [_stretch(each, scale, y) for each in thinned(stretches, scale)]
    for guide in guides[:MOST_GUIDES]:
        x = scale(guide.at)
        content.append(tag("line", class_="guide", x1=x, x2=x, y1=0, y2=height, data_tip=guide.tip))
    return drawing(WIDE, height + AXIS, summary, *content, time=scale)


def strip(
    rows: Mapping[str, Sequence[Mark]], rounds: Sequence[Stretch], span: tuple[float, float], summary: str
) -> Markup:
    """The rounds as a band, then one row of marks for each kind of event."""
    scale = time_scale(span)
    named = {"rounds": (), **rows}
    height = len(named) * (ROW + GAP)
    content = [time_axis(scale, 0, height), *_names(named)]
    content += [_stretch(each, scale, GAP / 2) for each in thinned(rounds, scale)]
    for number, (name, marks) in enumerate(rows.items(), start=1):
        y = number * (ROW + GAP) + (ROW + GAP) / 2
        content.append(tag("line", class_="rail", x1=LABELS, x2=scale.end, y1=y, y2=y))
        content += _marks(marks, scale, y, f"e-{name.replace(' ', '-')}")
    return drawing(WIDE, height + AXIS, summary, *content, time=scale)


def thinned(stretches: Iterable[Stretch], scale: Scale) -> list[Stretch]:
    """Neighbours too short to see become one, with the gravest state among them."""
    kept: list[Stretch] = []
    for each in stretches:
        before = kept[-1] if kept else None
        if (
            before is None
            or scale(each.end) - scale(before.start) >= LEAST_PIXELS
            or scale(before.end) < scale(each.start) - 0.1
        ):
            kept.append(each)
        else:
            gravest = max(before, each, key=lambda stretch: stretch.gravity)
            kept[-1] = replace(gravest, start=before.start, end=each.end)
    return kept


def _stretch(each: Stretch, scale: Scale, y: float) -> Markup:
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
        data_tip=each.tip,
    )
    if not each.label or width < len(each.label) * PIXELS_PER_CHARACTER + 6:
        return box
    return join(box, tag("text", each.label, class_=f"inside on-{each.state}", x=x + width / 2, y=y + ROW / 2 + 4))


def _marks(marks: Sequence[Mark], scale: Scale, y: float, style: str) -> list[Markup]:
    """One mark per place: what happened within the same two pixels shares it."""
    places: dict[int, list[Mark]] = {}
    for mark in marks:
        places.setdefault(round(scale(mark.at) / 3), []).append(mark)
    drawn = []
    for here in places.values():
        first = here[0]
        more = f"\n… and {len(here) - 6} more" if len(here) > 6 else ""
        tip = "\n".join(mark.tip for mark in here[:6]) + more
        size = 4.0 if len(here) == 1 else min(4.0 + len(here) / 3, 8.0)
        dot = tag("circle", class_=f"event {style}", cx=scale(first.at), cy=y, r=size, data_tip=tip)
        drawn.append(tag("a", dot, href=f"#{first.target}", tabindex=-1) if first.target else dot)
    return drawn


def _names(rows: Iterable[str]) -> list[Markup]:
    """Row labels, shortened in the middle of the row's name where they do not fit."""
    drawn = []
    for number, name in enumerate(rows):
        shown = name if len(name) <= 17 else f"{name[:8]}…{name[-8:]}"
        y = number * (ROW + GAP) + (ROW + GAP) / 2 + 4
        drawn.append(tag("text", shown, class_="row", x=LABELS - 10, y=y, data_tip=name if shown != name else None))
    return drawn
