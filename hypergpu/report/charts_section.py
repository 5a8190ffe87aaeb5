"""Charts of the page, each with a caption."""

from collections.abc import Callable, Mapping, Sequence

from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.common.text import counted, duration, figure, natural_key, percent
from hypergpu.report import timeline_data
from hypergpu.report.charts.canvas import framed, legend
from hypergpu.report.charts.lines import Point, Series, empty, line_chart
from hypergpu.report.charts.stacked_bar_chart import shares, stacked_bars
from hypergpu.report.charts.swimlane_chart import Interval, lanes, strip
from hypergpu.report.markup import Markup, tag
from hypergpu.report.model import Round, Run
from hypergpu.report.table import row_id

MOST_LANES = 32
MOST_METRICS = 8
"""Most further metrics that are drawn."""
Of = Callable[[Round], float | None]


def learning(run: Run, others: Sequence[tuple[str, str, Run]] = ()) -> Markup:
    """Return charts of metric and loss, over time and over rounds; `others` are a label, a style and a run each."""
    apart = any(each.is_simulated != run.is_simulated for *_, each in others)
    runs = [
        (f"this run ({'simulated' if run.is_simulated else 'real'})" if apart else "this run", "mine", run),
        *others,
    ]
    metric = run.metric
    measured: list[tuple[str, Of, MetricSpec]] = [
        ("Loss", lambda r: r.loss if r.loss is not None else r.train_loss, LOSS)
    ]
    if metric != LOSS:
        measured.insert(0, (metric.name[0].upper() + metric.name[1:], lambda r: r.metric, metric))
    further = list(dict.fromkeys(name for each in run.rounds for name in each.others))[:MOST_METRICS]
    measured += [(name, _further(name), MetricSpec(name=name)) for name in further]
    figures = []
    for name, of, spec in measured:
        for over_time in (True, False):
            series = [Series(label, style, _points(each, of, over_time=over_time)) for label, style, each in runs]
            summary = _trend(name, series[0].points, spec, over_time=over_time) + _returned(run, spec)
            chart = line_chart(series, summary, over_time=over_time, share=spec.is_share)
            figures.append(framed(f"{name} over {'time' if over_time else 'rounds'}", summary, chart))
    key = legend([(style, label) for label, style, _ in runs]) if others else None
    return tag("div", key, tag("div", *figures, class_="pairs"))


def _further(name: str) -> Of:
    return lambda each: each.others.get(name)


def timeline(run: Run, rows: Sequence[int]) -> Markup:
    """Return events, links, selection and batch sizes on one time axis; `rows` are the events in the table."""
    span = (run.began_at, run.ended_at)
    shown = timeline_data.most_eventful(run, MOST_LANES)
    left_out = len(run.node_ids) > len(shown)
    few = f" The {len(shown)} most eventful of {counted(len(run.node_ids), 'node')} are shown." if left_out else ""
    guides = timeline_data.turning_points(run)
    dotted = " Dotted lines: network events and rollbacks." if guides else ""

    def drawn(
        title: str, lane: Mapping[str, Sequence[Interval]], caption: str, key: Sequence[tuple[str, str]]
    ) -> Markup:
        if not lane:
            return framed(title, caption, empty("No data."))
        return framed(title, caption + few, lanes(lane, span, caption, guides), legend(key) if key else None)

    quality = timeline_data.quality_lanes(run, shown)
    figures = [_strip(run, rows)]
    counts = timeline_data.class_counts(run)
    if counts:
        caption = "Number of links by quality class."
        styles = {each: f"q-{each}" for each in timeline_data.QUALITIES}
        figures.append(framed("All links", caption, shares(counts, styles, span, caption)))
    classes = [(f"q-{each}", each) for each in timeline_data.QUALITIES]
    parts = [(f"p-{each}", meaning) for each, meaning in timeline_data.TAKING_PART.items()]
    participation = timeline_data.participation_lanes(run, shown)
    figures += [
        drawn("Link quality", quality, _quality_caption(quality) + dotted, classes),
        drawn(
            "Selection and quarantine",
            participation,
            _participation_caption(run),
            parts,
        ),
        drawn("Batch sizes", timeline_data.batch_lanes(run, shown), _batch_caption(run), ()),
    ]
    return tag(
        "div",
        tag(
            "p",
            "These charts share one time axis, which starts with the first round.",
            class_="hint",
        ),
        *figures,
    )


def round_time(run: Run) -> Markup:
    """Return a chart of the parts of each round's time."""
    if not run.rounds:
        return empty("No round completed.")
    bars = timeline_data.round_parts(run)
    whole = sum(sum(parts.values()) for _, parts in bars) or 1.0
    totals = ", ".join(
        f"{percent(sum(parts[name] for _, parts in bars) / whole)} {name}" for name in timeline_data.PARTS
    )
    caption = f"Share of all round time: {totals}. Computing time is that of the slowest contributing node."
    key = legend([(style, name) for name, style in timeline_data.PARTS.items()])
    return framed("Parts of the round time", caption, stacked_bars(bars, timeline_data.PARTS, caption), key)


def _strip(run: Run, rows: Sequence[int]) -> Markup:
    marks = timeline_data.event_marks(run, {number: row_id(number) for number in rows})
    bands = timeline_data.round_bands(run)
    short = sum(band.state == "band-short" for band in bands)
    count = sum(len(each) for each in marks.values())
    if len(bands) > 1:
        rounds = f"{len(bands):,} rounds, "
        rounds += f"{short} of them without some of their nodes (orange)" if short else "all with all their nodes"
    elif bands:
        rounds = f"1 round, {'without some of its nodes (orange)' if short else 'with all its nodes'}"
    else:
        rounds = "No round completed"
    happened = f"{count:,} events and decisions" if count != 1 else "1 event"
    caption = f"{rounds}; {happened}. Each mark links to its row in the table below."
    return framed("Rounds, events and decisions", caption, strip(marks, bands, (run.began_at, run.ended_at), caption))


def _points(run: Run, of: Of, *, over_time: bool) -> list[Point]:
    """Return the measured values, with a gap for rounds missing from the record."""
    points: list[Point] = []
    before = None
    for closed in run.rounds:
        if before is not None and closed.number > before.number + 1:
            points.append((before.ended_at if over_time else before.number, None))
        value = of(closed)
        if value is not None:
            points.append((closed.ended_at if over_time else closed.number, value))
        before = closed
    return points


def _trend(name: str, points: Sequence[Point], spec: MetricSpec, *, over_time: bool) -> str:
    known = [(at, value) for at, value in points if value is not None]
    if not known:
        return f"{name} was not measured."
    (first_at, first), (last_at, last) = known[0], known[-1]
    show = spec.text
    begin, end = (duration(first_at), duration(last_at)) if over_time else (f"round {first_at:g}", f"round {last_at:g}")
    if len(known) == 1:
        return f"{show(first)} ({begin})."
    return f"From {show(first)} ({begin}) to {show(last)} ({end})."


def _returned(run: Run, spec: MetricSpec) -> str:
    """Return a sentence about the model that the run returned to after the last evaluation; empty if it did not."""
    if run.last_revert is None:
        return ""
    loss, metric = run.final
    value = loss if spec == LOSS else metric
    return f" The run then returned to an earlier model{f': {spec.text(value)}' if value is not None else ''}."


def _quality_caption(rows: Mapping[str, Sequence[Interval]]) -> str:
    if not rows:
        return "No link was classified."
    last = [intervals[-1].label for intervals in rows.values()]
    changes = sum(len(intervals) - 1 for intervals in rows.values())
    ends = ", ".join(f"{last.count(each)} {each}" for each in timeline_data.QUALITIES if each in last)
    return f"{counted(changes, 'quality change')}; final: {ends}."


def _participation_caption(run: Run) -> str:
    asked = sum(len(closed.nodes) for closed in run.rounds)
    came = sum(each.success for closed in run.rounds for each in closed.nodes)
    if not asked:
        return "No node was selected."
    held = {e.subject for e in run.events if e.kind == "quarantine" and e.figures.get("state") == "quarantined"}
    named = ", ".join(sorted(held, key=natural_key)[:8]) + (" …" if len(held) > 8 else "")
    who = f"quarantined: {named}" if held else "no node was quarantined"
    return f"{came:,} of {asked:,} updates arrived in time; {who}."


def _batch_caption(run: Run) -> str:
    sizes = [each.batch_size for closed in run.rounds for each in closed.nodes if each.batch_size]
    if not sizes:
        return "No batch was assigned."
    if min(sizes) == max(sizes):
        return f"Always {figure(sizes[0])} samples."
    return f"From {figure(min(sizes))} to {figure(max(sizes))} samples; darker means larger."
