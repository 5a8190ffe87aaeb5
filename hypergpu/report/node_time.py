"""Seconds and bytes of each node by part of a round, summed over the rounds of a run."""

from collections import defaultdict

from hypergpu.common.text import counted, duration, natural_key, percent, size
from hypergpu.coordinator.core.rounds.node_time import NodeTime, node_time, total_time
from hypergpu.coordinator.core.rounds.traffic import Traffic
from hypergpu.report.charts.lines import empty
from hypergpu.report.markup import Markup, tag
from hypergpu.report.model import NodeRound, Run

MOST_NODES = 500
_PARTS = ("download", "compute", "upload", "wait", "lost")
_HINT = (
    "Download: from the assignment to the offer of the update, without computing. Upload: from there until the update "
    "had arrived. Wait: the rest of the round. Lost: rounds to which the node did not contribute. Utilisation: share "
    "of all time in which the node computed."
)


def times(run: Run) -> dict[str, NodeTime]:
    """Return the time of each node in all rounds by part; empty if the rounds do not tell uploads from downloads."""
    of_node: defaultdict[str, list[NodeTime]] = defaultdict(list)
    for closed in run.rounds:
        for each in closed.nodes:
            if each.success and each.upload_seconds is None:
                return {}
            of_node[each.node].append(_time(each, closed.seconds))
    return {node: total_time(of_node[node]) for node in sorted(of_node, key=natural_key)}


def utilisation(run: Run) -> float | None:
    """Return the share of the time of all nodes in which they computed; None if it is unknown."""
    return total_time(times(run).values()).utilisation


def traffic(run: Run) -> dict[str, Traffic]:
    """Return the bytes on each link in all rounds."""
    down: defaultdict[str, int] = defaultdict(int)
    up: defaultdict[str, int] = defaultdict(int)
    for closed in run.rounds:
        for node, counted_bytes in closed.traffic.items():
            down[node] += counted_bytes.down
            up[node] += counted_bytes.up
    return {node: Traffic(down[node], up[node]) for node in down}


def node_times(run: Run) -> Markup:
    """Return a table of seconds and bytes by part of a round, of each node and of all."""
    spent, moved = times(run), traffic(run)
    if not spent:
        return empty("The parts of a round are not on record.")
    every = Traffic(sum(each.down for each in moved.values()), sum(each.up for each in moved.values()))
    shown = list(spent)[:MOST_NODES]
    head = [*_PARTS, "utilisation", "received", "sent"]
    rows = [_row(node, spent[node], moved.get(node, Traffic())) for node in shown]
    cells = (tag("th", name, scope="col", class_="number") for name in head)
    table = tag(
        "table",
        tag("thead", tag("tr", tag("th", "node", scope="col"), *cells)),
        tag("tbody", *rows),
        tag("tfoot", _row("all nodes", total_time(spent.values()), every)),
        id="node-times",
        class_="sortable",
    )
    few = f" The first {len(shown)} of {counted(len(spent), 'node')} are shown." if len(shown) < len(spent) else ""
    return tag(
        "div",
        tag("h3", "Time and bytes of each node"),
        tag("p", _HINT + few, class_="hint"),
        tag("div", table, class_="scroll tall card", tabindex=0, role="region", aria_label="Time of each node"),
    )


def _time(each: NodeRound, round_seconds: float) -> NodeTime:
    return node_time(
        round_seconds,
        success=each.success,
        compute_seconds=max(each.compute_seconds or 0.0, 0.0),
        waiting_seconds=max(each.waiting_seconds or 0.0, 0.0),
        upload_seconds=max(each.upload_seconds or 0.0, 0.0),
    )


def _row(name: str, time: NodeTime, moved: Traffic) -> Markup:
    cells = [(getattr(time, part), duration(getattr(time, part))) for part in _PARTS]
    cells.append((time.utilisation or 0.0, percent(time.utilisation)))
    cells += [(nbytes, size(nbytes)) for nbytes in moved]
    return tag(
        "tr", tag("td", name), *(tag("td", text, class_="number", data_value=f"{value:.6g}") for value, text in cells)
    )
