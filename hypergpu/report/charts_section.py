"""The parts of the page that are drawn, each with what it says in words."""

from collections.abc import Callable, Mapping, Sequence

from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.common.text import counted, duration, figure, natural_key, percent
from hypergpu.report import timeline_data
from hypergpu.report.charts.canvas import framed, legend
from hypergpu.report.charts.lines import Point, Series, empty, line_chart
from hypergpu.report.charts.stacked_bar_chart import shares, stacked_bars
from hypergpu.report.charts.swimlane_chart import Stretch, lanes, strip
from hypergpu.report.markup import Markup, tag
from hypergpu.report.model import Round, Run
from hypergpu.report.table import row_id

MOST_LANES = 32
Of = Callable[[Round], float | None]


def learning(run: Run, others: Sequence[tuple[str, str, Run]] = ()) -> Markup:
    """Metric and loss, over time and over rounds; `others` are drawn beside it, each with a label and a style."""
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
    figures = []
    for name, of, spec in measured:
        for over_time in (True, False):
            series = [Series(label, style, _points(each, of, over_time=over_time)) for label, style, each in runs]
            summary = _course(name, series[0].points, spec, over_time=over_time)
            chart = line_chart(series, summary, over_time=over_time, share=spec.is_share)
            figures.append(framed(f"{name} over {'time' if over_time else 'rounds'}", summary, chart))
    key = legend([(style, label) for label, style, _ in runs]) if others else None
    return tag("div", key, tag("div", *figures, class_="pairs"))


def timeline(run: Run, rows: Sequence[int]) -> Markup:
    """Events, links, selection and batches on one time axis; `rows` are the events that the table lists."""
    span = (run.began_at, run.ended_at)
    shown = timeline_data.most_eventful(run, MOST_LANES)
    left_out = len(run.node_ids) > len(shown)
    few = f" Drawn are the {len(shown)} most eventful of {counted(len(run.node_ids), 'node')}." if left_out else ""
    guides = timeline_data.turning_points(run)
    dotted = " Dotted lines: changes of the network, and rollbacks." if guides else ""

    def drawn(title: str, lane: Mapping[str, Sequence[Stretch]], says: str, key: Sequence[tuple[str, str]]) -> Markup:
        if not lane:
            return framed(title, says, empty("Nothing is on record."))
        return framed(title, says + few, lanes(lane, span, says, guides), legend(key) if key else None)

    quality = timeline_data.quality_lanes(run, shown)
    figures = [_strip(run, rows)]
    counts = timeline_data.class_counts(run)
    if counts:
        says = "How the links divide into classes."
        styles = {each: f"q-{each}" for each in timeline_data.QUALITIES}
        figures.append(framed("All links", says, shares(counts, styles, span, says)))
    classes = [(f"q-{each}", each) for each in timeline_data.QUALITIES]
    parts = [(f"p-{each}", meaning) for each, meaning in timeline_data.TAKING_PART.items()]
    figures += [
        drawn("Link quality", quality, _quality_says(quality) + dotted, classes),
        drawn("Selection and quarantine", timeline_data.participation_lanes(run, shown), _part_says(run), parts),
        drawn("Batch sizes", timeline_data.batch_lanes(run, shown), _batch_says(run), ()),
    ]
    return tag(
        "div",
        tag(
            "p",
            "All of these share one axis of time, which counts from the beginning of the first round.",
            class_="hint",
        ),
        *figures,
    )


def round_time(run: Run) -> Markup:
    """Where the time of each round went."""
    if not run.rounds:
        return empty("No round was finished.")
    bars = timeline_data.round_parts(run)
    whole = sum(sum(parts.values()) for _, parts in bars) or 1.0
    totals = ", ".join(
        f"{percent(sum(parts[name] for _, parts in bars) / whole)} {name}" for name in timeline_data.PARTS
    )
    says = f"Of all round time: {totals}. Computing is that of the slowest node that contributed."
    key = legend([(style, name) for name, style in timeline_data.PARTS.items()])
    return framed("Round time and its parts", says, stacked_bars(bars, timeline_data.PARTS, says), key)


def _strip(run: Run, rows: Sequence[int]) -> Markup:
    marks = timeline_data.event_marks(run, {number: row_id(number) for number in rows})
    bands = timeline_data.round_bands(run)
    short = sum(band.state == "band-short" for band in bands)
    count = sum(len(each) for each in marks.values())
    if len(bands) > 1:
        rounds = f"{len(bands):,} rounds, "
        rounds += f"{short} of them ended without some of their nodes (orange)" if short else "all with all their nodes"
    elif bands:
        rounds = f"1 round, {'without some of its nodes (orange)' if short else 'with all its nodes'}"
    else:
        rounds = "No round was finished"
    happened = f"{count:,} events and decisions" if count != 1 else "1 event"
    says = f"{rounds}; {happened}. A mark leads to its row in the table below."
    return framed("Rounds, events and decisions", says, strip(marks, bands, (run.began_at, run.ended_at), says))


def _points(run: Run, of: Of, *, over_time: bool) -> list[Point]:
    """Measured values; a gap where rounds are missing from the record, none where they were not evaluated."""
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


def _course(name: str, points: Sequence[Point], spec: MetricSpec, *, over_time: bool) -> str:
    known = [(at, value) for at, value in points if value is not None]
    if not known:
        return f"{name} was not measured."
    (first_at, first), (last_at, last) = known[0], known[-1]
    show = spec.text
    begin, end = (duration(first_at), duration(last_at)) if over_time else (f"round {first_at:g}", f"round {last_at:g}")
    if len(known) == 1:
        return f"{show(first)} ({begin})."
    return f"From {show(first)} ({begin}) to {show(last)} ({end})."


def _quality_says(rows: Mapping[str, Sequence[Stretch]]) -> str:
    if not rows:
        return "No link was classed."
    last = [stretches[-1].label for stretches in rows.values()]
    changes = sum(len(stretches) - 1 for stretches in rows.values())
    ends = ", ".join(f"{last.count(each)} {each}" for each in timeline_data.QUALITIES if each in last)
    return f"{counted(changes, 'change')} of class; at the end {ends}."


def _part_says(run: Run) -> str:
    asked = sum(len(closed.nodes) for closed in run.rounds)
    came = sum(each.success for closed in run.rounds for each in closed.nodes)
    if not asked:
        return "No node was selected."
    held = {e.subject for e in run.events if e.kind == "quarantine" and e.figures.get("state") == "quarantined"}
    named = ", ".join(sorted(held, key=natural_key)[:8]) + (" …" if len(held) > 8 else "")
    who = f"quarantined at some time: {named}" if held else "no node was quarantined"
    return f"{came:,} of {asked:,} orders were fulfilled in time; {who}."


def _batch_says(run: Run) -> str:
    sizes = [each.batch_size for closed in run.rounds for each in closed.nodes if each.batch_size]
    if not sizes:
        return "No batch was assigned."
    if min(sizes) == max(sizes):
        return f"Always {figure(sizes[0])} samples."
    return f"From {figure(min(sizes))} to {figure(max(sizes))} samples; the stronger the colour, the larger."
