"""Table of decisions and events, which the page's script filters."""

from collections import Counter
from collections.abc import Sequence

from hypergpu.common.text import figure, natural_key
from hypergpu.report.axis import clock
from hypergpu.report.charts.lines import empty
from hypergpu.report.markup import Markup, tag
from hypergpu.report.model import Event, Run
from hypergpu.report.timeline_data import category, words

MOST_ROWS = 2_000
_NO_NEWS = frozenset({"round_started", "shards_dealt"})


def chosen(events: Sequence[Event]) -> list[int]:
    """Return the numbers of the events that get a row: the latest, with a fair share for each kind."""
    numbers = [number for number, event in enumerate(events) if event.kind not in _NO_NEWS]
    counts = Counter(events[number].kind for number in numbers)
    left, allowed = MOST_ROWS, {}
    for place, (kind, count) in enumerate(sorted(counts.items(), key=lambda item: item[1])):
        allowed[kind] = min(count, left // (len(counts) - place))
        left -= allowed[kind]
    kept = []
    for number in reversed(numbers):
        kind = events[number].kind
        if allowed[kind]:
            allowed[kind] -= 1
            kept.append(number)
    return kept[::-1]


def row_id(number: int) -> str:
    """Return the HTML id of an event's row."""
    return f"event-{number}"


def event_table(run: Run, rows: Sequence[int]) -> Markup:
    """Return the table of events, with the controls that filter it."""
    if not rows:
        return empty("No events.")
    events = [run.events[number] for number in rows]
    body = [_row(number, event) for number, event in zip(rows, events, strict=True)]
    head = tag("tr", *(tag("th", name, scope="col") for name in ("Time", "Round", "What", "About", "Why", "Figures")))
    table = tag("table", tag("thead", head), tag("tbody", *body), id="events")
    few = f"The latest {len(rows):,} of {len(run.events):,} records, with a fair share for each kind."
    return tag(
        "div",
        tag("p", few, class_="hint") if len(rows) == MOST_ROWS else None,
        _controls(events),
        tag("div", table, class_="scroll tall card", tabindex=0, role="region", aria_label="Decisions and events"),
    )


def _row(number: int, event: Event) -> Markup:
    why = words(event.reason) if event.is_decision else event.text
    cells = (
        tag("td", clock(round(event.at, 1)), class_="number"),
        tag("td", event.round if event.round > 0 else "", class_="number"),
        tag("td", tag("span", words(event.kind), class_=f"kind k-{category(event).replace(' ', '-')}")),
        tag("td", event.subject),
        tag("td", why, colspan=None if event.is_decision else 2),
        tag("td", _figures(event), class_="figures") if event.is_decision else None,
    )
    return tag("tr", *cells, id=row_id(number), data_kind=event.kind, data_subject=event.subject, data_at=event.at)


def _figures(event: Event) -> str:
    figures = event.figures.items()
    return ", ".join(
        f"{words(name)} {figure(each) if isinstance(each, int | float) else each}" for name, each in figures
    )


def _controls(events: Sequence[Event]) -> Markup:
    kinds = Counter(event.kind for event in events)
    boxes = []
    for kind, count in sorted(kinds.items()):
        box = tag("input", type="checkbox", value=kind, checked=True)
        boxes.append(tag("label", box, words(kind), tag("b", count), class_="chip"))
    subjects = list(dict.fromkeys(event.subject for event in events if event.subject))[:500]
    options = [
        tag("option", "all", value=""),
        *(tag("option", name, value=name) for name in sorted(subjects, key=natural_key)),
    ]
    return tag(
        "form",
        tag("label", "Search ", tag("input", type="search", id="search", placeholder="reason, node, figure …")),
        tag("label", "About ", tag("select", *options, id="subject")),
        tag(
            "fieldset",
            tag("legend", "Kinds"),
            *boxes,
            tag("button", "all", type="button", id="all"),
            tag("button", "none", type="button", id="none"),
        ),
        tag("output", f"{len(events)} shown", id="shown", aria_live="polite"),
        class_="filters",
        id="filters",
    )
