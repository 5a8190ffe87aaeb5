"""Timeline of each node from the record of a run: intervals for the lanes, marks for the strip."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from hypergpu.common.text import counted, duration, figure
from hypergpu.report.axis import clock
from hypergpu.report.charts.swimlane_chart import Interval, Mark
from hypergpu.report.model import CLUSTER, Event, NodeRound, Run

QUALITIES = ("excellent", "good", "fair", "poor", "critical", "offline")
PARTS = {"computing": "computing", "communicating and waiting": "waiting", "aggregating and evaluating": "closing"}
"""Parts of a round's time, and their classes in the style sheet."""
TAKING_PART = {
    "contributed": "contributed",
    "missing": "selected, but its update did not come in time",
    "left-out": "left out",
    "quarantined": "in quarantine",
}
_KINDS_OF_ROW = {
    "network": ("network", "network_event", "netsim"),
    "nodes": (
        "node_joined",
        "node_ready",
        "node_left",
        "node_lost",
        "no_nodes",
        "membership",
        "rule",
        "reassignment",
        "spot_check",
    ),
    "alerts": (
        "alert",
        "rollback",
        "update",
        "work_returned",
        "step_skipped",
        "checkpoint_failed",
        "checkpoint_damaged",
    ),
    "quality": ("quality",),
    "selection": ("selection",),
    "quarantine": ("quarantine",),
    "batch size": ("batch_size",),
    "pace": ("local_steps", "learning_rate", "deadline", "compression", "connections", "rehearsal"),
    "run": ("phase", "policy", "paused", "resumed", "waiting", "round_abandoned", "completed", "stopped"),
}
_ROW_OF = {kind: row for row, kinds in _KINDS_OF_ROW.items() for kind in kinds}
_UNMARKED = frozenset({"round_started", "round_closed", "shards_dealt"})

States = Mapping[str, Sequence[tuple[float, str, str]]]
"""Changes by node: time, state, reason."""


def round_bands(run: Run) -> list[Interval]:
    """Return the rounds as bands, alternately light and dark; rounds without some of their nodes stand out."""
    bands = []
    for closed, (start, end) in zip(run.rounds, run.bands, strict=True):
        full = closed.reason in ("all_contributed", "")
        state = ("band-even" if closed.number % 2 else "band-odd") if full else "band-short"
        came = sum(each.success for each in closed.nodes)
        who = f"{came} of {counted(len(closed.nodes), 'node')}, {words(closed.reason)}"
        tooltip = f"round {closed.number}, {clock_span(start, end)}: {who}"
        bands.append(Interval(start, end, state, str(closed.number), tooltip, 0 if full else 1))
    return bands


def event_marks(run: Run, target: Mapping[int, str]) -> dict[str, list[Mark]]:
    """Return marks of all events by row; `target` holds ids of table rows by event number."""
    rows: dict[str, list[Mark]] = {}
    for number, event in enumerate(run.events):
        if event.kind in _UNMARKED:
            continue
        tooltip = f"{clock(round(event.at))}, round {event.round}: {event.text}"
        rows.setdefault(category(event), []).append(Mark(event.at, tooltip, target.get(number)))
    return {name: rows[name] for name in (*_KINDS_OF_ROW, "other") if name in rows}


def turning_points(run: Run) -> list[Mark]:
    """Return the times of network events and rollbacks."""
    return [Mark(each.at, each.text) for each in run.events if each.kind == "rollback" or category(each) == "network"]


def category(event: Event) -> str:
    """Return the row of an event."""
    return _ROW_OF.get(event.kind, "other")


def quality_states(run: Run) -> States:
    """Return the quality class of each link over time; a link whose node is gone is offline until it is back."""
    states: dict[str, list[tuple[float, str, str]]] = {}
    before_absence: dict[str, str] = {}
    for event in run.events:
        if event.at > run.ended_at:
            break  # nodes that leave because the run is over
        if event.kind == "quality" and event.is_decision:
            quality = str(event.figures.get("quality", ""))
            if quality in QUALITIES:
                states.setdefault(event.subject, []).append((event.at, quality, _because(event)))
                before_absence[event.subject] = quality
        elif event.kind in ("node_lost", "node_left") and event.subject:
            states.setdefault(event.subject, []).append((event.at, "offline", event.text))
        elif event.kind == "node_joined" and event.subject in before_absence:
            back = before_absence[event.subject]
            states[event.subject].append((event.at, back, f"{event.text}; the class it had before"))
    return states


def quality_lanes(run: Run, nodes: Sequence[str]) -> dict[str, list[Interval]]:
    """Return the quality class of each link as intervals."""
    states = quality_states(run)
    return {
        node: [
            Interval(
                start,
                end,
                f"q-{state}",
                state,
                f"{node} {state}, {clock_span(start, end)}\n{why}",
                QUALITIES.index(state),
            )
            for start, end, state, why in _intervals(states[node], run.ended_at)
        ]
        for node in nodes
        if node in states
    }


def participation_lanes(run: Run, nodes: Sequence[str]) -> dict[str, list[Interval]]:
    """Return whether each node took part in each round, since it joined."""
    quarantines = {node: _intervals(changes, run.ended_at) for node, changes in _standings(run).items()}
    seen: dict[str, float] = {}
    for event in run.events:
        if event.kind == "node_joined" and event.subject:
            seen.setdefault(event.subject, event.at)
    away = _absences(run)
    lanes: dict[str, list[Interval]] = {node: [] for node in nodes}
    for closed, (start, end) in zip(run.rounds, run.bands, strict=True):
        took_part = {each.node: each for each in closed.nodes}
        for node, intervals in lanes.items():
            each = took_part.get(node)
            if each is not None:
                seen.setdefault(node, start)
                state = "contributed" if each.success else "missing"
            elif seen.get(node, end) >= end or _within(away.get(node, ()), start, end):
                continue
            else:
                held = any(s <= start < e and what == "quarantined" for s, e, what, _ in quarantines.get(node, ()))
                state = "quarantined" if held else "left-out"
            severity = ("contributed", "left-out", "quarantined", "missing").index(state)
            tooltip = f"{node}, round {closed.number}: {TAKING_PART[state]}{_timing(each)}"
            intervals.append(Interval(start, end, f"p-{state}", "", tooltip, severity))
    return {node: intervals for node, intervals in lanes.items() if intervals}


def batch_lanes(run: Run, nodes: Sequence[str]) -> dict[str, list[Interval]]:
    """Return intervals in which a node took part with the same batch size."""
    sizes = sorted({n.batch_size for r in run.rounds for n in r.nodes if n.batch_size})
    if not sizes:
        return {}
    chosen = set(nodes)
    low, span = sizes[0], max(sizes[-1] / sizes[0], 1.0001)
    lanes: dict[str, list[Interval]] = {}
    for closed, (start, end) in zip(run.rounds, run.bands, strict=True):
        for each in closed.nodes:
            if not each.batch_size or each.node not in chosen:
                continue
            row = lanes.setdefault(each.node, [])
            label = figure(each.batch_size)
            level = shade(each.batch_size / low, span)
            last = row[-1] if row else None
            stays = (
                last is not None and last.label == label and start - last.end <= 0.01 * (run.ended_at - run.began_at)
            )
            begun = last.start if last is not None and stays else start
            tooltip = f"{each.node}: batch of {label}, {clock_span(begun, end)}"
            if stays:
                row.pop()
            row.append(Interval(begun, end, f"b-{level}", label, tooltip, level))
    return {node: lanes[node] for node in nodes if node in lanes}


def shade(ratio: float, span: float) -> int:
    """Return a level of 0 to 5 by the logarithm of `ratio`, which is between 1 and `span`."""
    level = 0
    while level < 5 and ratio > span ** ((level + 0.5) / 5):
        level += 1
    return level


def round_parts(run: Run) -> list[tuple[int, dict[str, float]]]:
    """Return the seconds of each part of each round."""
    bars = []
    for closed, (start, end) in zip(run.rounds, run.bands, strict=True):
        computing = min(max((n.compute_seconds or 0.0 for n in closed.nodes if n.success), default=0.0), closed.seconds)
        parts = {"computing": computing, "communicating and waiting": closed.seconds - computing}
        parts["aggregating and evaluating"] = max(end - start - closed.seconds, 0.0)
        bars.append((closed.number, parts))
    return bars


def most_eventful(run: Run, most: int) -> list[str]:
    """Return at most `most` nodes, in order: those with the most decisions and failures."""
    if len(run.node_ids) <= most:
        return list(run.node_ids)
    weight = Counter(event.subject for event in run.events if event.subject)
    weight.update(each.node for closed in run.rounds for each in closed.nodes if not each.success)
    kept = set(sorted(run.node_ids, key=lambda node: -weight[node])[:most])
    return [node for node in run.node_ids if node in kept]


def class_counts(run: Run) -> list[tuple[float, dict[str, int]]]:
    """Return the number of links in each quality class after each change; recorded only for large clusters."""
    steps: list[tuple[float, dict[str, int]]] = []
    for event in run.events:
        if event.kind == "quality" and event.subject == CLUSTER:
            counts = {each: value for each in QUALITIES if isinstance(value := event.figures.get(each), int)}
            steps.append((event.at, counts))
    return steps


def clock_span(start: float, end: float) -> str:
    """Return a interval of time for people."""
    return f"from {clock(round(start, 1))} for {duration(end - start)}"


def words(name: str) -> str:
    """Return an identifier as words."""
    return name.replace("_", " ")


def _because(event: Event) -> str:
    shown = [f"{words(name)} {figure(v) if isinstance(v, int | float) else v}" for name, v in event.figures.items()]
    return ", ".join(shown)


def _timing(each: NodeRound | None) -> str:
    if each is None:
        return ""
    shown = []
    if each.compute_seconds:
        shown.append(f"computed {duration(each.compute_seconds)}")
    if each.waiting_seconds is not None:
        shown.append(f"waited for {duration(each.waiting_seconds)}")
    if each.codecs not in ("", "none/none"):
        noise = "" if each.noise is None else f" (noise {figure(each.noise)})"
        shown.append(f"codecs {each.codecs}{noise}")
    return "\n" + ", ".join(shown) if shown else ""


def _standings(run: Run) -> States:
    standings: dict[str, list[tuple[float, str, str]]] = {}
    for event in run.events:
        if event.kind == "quarantine" and event.is_decision:
            standings.setdefault(event.subject, []).append(
                (event.at, str(event.figures.get("state", "")), event.reason)
            )
    return standings


def _absences(run: Run) -> dict[str, list[tuple[float, float]]]:
    gone: dict[str, float] = {}
    absences: dict[str, list[tuple[float, float]]] = {}
    for event in run.events:
        if event.kind in ("node_lost", "node_left"):
            gone.setdefault(event.subject, event.at)
        elif event.kind == "node_joined" and event.subject in gone:
            absences.setdefault(event.subject, []).append((gone.pop(event.subject), event.at))
    for node, at in gone.items():
        absences.setdefault(node, []).append((at, float("inf")))
    return absences


def _within(absences: Iterable[tuple[float, float]], start: float, end: float) -> bool:
    return any(gone <= start and end <= back for gone, back in absences)


def _intervals(changes: Sequence[tuple[float, str, str]], until: float) -> list[tuple[float, float, str, str]]:
    """Return changes as (start, end, state, why), with neighbours of the same state merged."""
    merged: list[tuple[float, str, str]] = []
    for change in changes:
        if not merged or merged[-1][1] != change[1]:
            merged.append(change)
    ends = [*(at for at, *_ in merged[1:]), max(until, merged[-1][0])] if merged else []
    return [(at, end, state, why) for (at, state, why), end in zip(merged, ends, strict=True)]
