"""Live view of a training run in a terminal: progress, nodes, links, and decisions with their reasons."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hypergpu.client import Client
from hypergpu.common import strict_json
from hypergpu.common.errors import Unavailable
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec, finite
from hypergpu.common.text import UNKNOWN, counted, duration, figure, mbit, milliseconds, number, percent
from hypergpu.common.transfer_codecs import NO_CODECS
from hypergpu.console import QUALITY_STYLE, STATE_STYLE, known, marked, progress, styled
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net

ENDED = ("completed", "stopped")
"""Final states of a run."""
_BARS = "▁▂▃▄▅▆▇█"
_FRAME_ROWS = 12
"""Rows of the view for frames, headings and progress."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Status, nodes and links of a cluster at one moment."""

    status: pb.Status
    nodes: Sequence[pb.NodeInfo] = ()
    links: Sequence[net.LinkInfo] = ()


@dataclass(slots=True)
class History:
    """Metric and duration of each observed round."""

    metric_name: str = "accuracy"
    metric: dict[int, float] = field(default_factory=dict)
    round_seconds: dict[int, float] = field(default_factory=dict)

    def add(self, status: pb.Status) -> None:
        """Add the figures of a status, replacing earlier ones of the same round."""
        value, seconds = known(status.metric, "value"), known(status, "round_seconds")
        if status.round and value is not None:
            self.metric[status.round] = value
        if status.round and seconds is not None:
            self.round_seconds[status.round] = seconds

    def replay(self, event: pb.RunEvent) -> None:
        """Add the figures of a past event, if it closed a round."""
        try:
            record = strict_json.parse_object(event.json) if event.kind == "round_closed" else {}
        except ValueError:  # an unreadable event is missing from the curves, no more
            return
        value, seconds = finite(record.get(self.metric_name)), finite(record.get("round_seconds"))
        if value is not None:
            self.metric[event.round] = value
        if seconds is not None:
            self.round_seconds[event.round] = seconds


async def take_snapshot(client: Client) -> Snapshot:
    """Return the current status, nodes and links; without links if there is no proxy or it does not answer."""
    current = await client.call(client.control.GetStatus, pb.GetStatusRequest())
    found = await client.nodes()
    try:
        links = await client.links() if client.has_proxy else []
    except Unavailable:
        links = []
    return Snapshot(current, found, links)


def dashboard(snapshot: Snapshot, history: History, height: int = 30) -> RenderableType:
    """Return the view, at most `height` lines high."""
    rows = max(3, height - _FRAME_ROWS)
    node_rows = min(len(snapshot.nodes), max(3, rows * 3 // 5))
    return Group(
        _progress(snapshot.status, history),
        _nodes(snapshot, node_rows),
        _decisions(snapshot.status.decisions, max(2, rows - max(1, node_rows))),
    )


def metric_of(status: pb.Status) -> MetricSpec:
    """Return the metric of a run."""
    told = status.metric
    try:
        return MetricSpec.model_validate(
            {"name": told.name, "better": told.better, "format": told.format, "unit": told.unit}
        )
    except ValidationError:  # a coordinator of another version
        return ACCURACY


def figures_of(status: pb.Status) -> str:
    """Return metric and loss as text: accuracy 95.1 %  loss 0.213."""
    metric, loss = metric_of(status), f"loss {figure(known(status, 'loss'))}"
    return loss if metric == LOSS else f"{metric.label(known(status.metric, 'value'))}  {loss}"


def sparkline(values: Iterable[float], width: int = 40) -> str:
    """Return the last `width` values as bars, scaled between their minimum and maximum."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_BARS[round((value - low) / step)] for value in shown)


def _progress(status: pb.Status, history: History) -> Panel:
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    bar.add_row(
        progress(status),
        ProgressBar(total=status.rounds, completed=status.round) if status.rounds else "until stopped",
        marked("[b]{figures}[/]  {time}", figures=figures_of(status), time=duration(status.elapsed_seconds)),
    )
    trend = Table.grid(expand=True, padding=(0, 1))
    trend.add_column(no_wrap=True)
    trend.add_column(no_wrap=True, justify="right")
    trend.add_row(
        marked("{name} [green]{line}[/]", name=metric_of(status).name, line=sparkline(history.metric.values(), 30)),
        marked(
            "round time [cyan]{line}[/] {last}",
            line=sparkline(history.round_seconds.values(), 30),
            last=_last_round(status),
        ),
    )
    if status.waiting_for:
        note = Text(f"waiting: {status.waiting_for}", "yellow", no_wrap=True, overflow="ellipsis")
    else:
        working = f"{status.nodes_selected} of {counted(status.nodes_connected, 'node')} in this round"
        left = known(status, "deadline_seconds")
        closes = "" if left is None else f", which closes within {duration(left)}"
        computing = known(status, "compute_utilisation")
        used = "" if computing is None else f"; nodes computed {percent(computing, digits=0)} of the last one"
        note = Text(working + closes + used, "dim", no_wrap=True)
    title = marked(
        "[b]HyperGPU[/]  {task} · {state} · phase {phase} · policy {policy}",
        task=status.task,
        state=status.state,
        phase=status.phase or "–",
        policy=status.policy,
    )
    problems = [Text(problem, "red", no_wrap=True, overflow="ellipsis") for problem in status.problems]
    rows = Group(bar, trend, note, *problems)
    return Panel(rows, title=title, title_align="left", subtitle=_subtitle(status), subtitle_align="right")


def _subtitle(status: pb.Status) -> Text:
    return Text(status.run_id + (f" · {figure(status.spent)} spent" if status.spent else ""))


def _last_round(status: pb.Status) -> str:
    seconds = known(status, "round_seconds")
    return UNKNOWN if seconds is None else duration(seconds)


def _nodes(snapshot: Snapshot, rows: int) -> Panel:
    links = {link.node_id: link for link in snapshot.links}
    adapted = any(_is_adapted(node) for node in snapshot.nodes)
    injected = bool(links) and not adapted
    table = _node_table(has_links=bool(links), adapted=adapted)
    for node in snapshot.nodes[:rows]:
        link = links.get(node.node_id)
        table.add_row(
            node.node_id,
            styled(node.state, STATE_STYLE),
            *((_profile(link),) if links else ()),
            *((_delay(link, "recent_delay_ms"), _delay(link, "mean_delay_ms")) if injected else ()),
            milliseconds(known(node, "latency_ms")),
            percent(known(node, "loss_rate"), digits=0),
            _rates(node),
            *(() if links else (number(known(node, "score")),)),
            *((node.codecs or UNKNOWN, connections_of(node)) if adapted else ()),
            styled(node.quality, QUALITY_STYLE),
            number(known(node, "batch_size")),
            f"{node.rounds_contributed}/{node.rounds_selected}",
            str(node.late),
        )
    hidden = Counter(node.quality for node in snapshot.nodes[rows:])
    more = f"and {hidden.total()} more: " + ", ".join(f"{count} {name}" for name, count in hidden.items())
    return Panel(table, title="nodes and links", title_align="left", subtitle=Text(more) if hidden else None)


def _node_table(*, has_links: bool, adapted: bool) -> Table:
    """Return the table of nodes without rows; what is injected gives way to codecs and connections."""
    headings = ["node", "state"]
    headings += ["profile"] if has_links else []
    headings += [">injected now", ">mean"] if has_links and not adapted else []
    headings += [">seen", ">loss", ">Mbit/s ↓ ↑"]
    headings += [] if has_links else [">score"]
    headings += ["codecs", ">TCP"] if adapted else []
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    for heading in [*headings, "quality", ">batch", ">done", ">late"]:
        table.add_column(heading.lstrip(">"), no_wrap=True, justify="right" if heading.startswith(">") else "left")
    return table


def _rates(node: pb.NodeInfo) -> str:
    """Return the rates of a link, down and up: 95.2 ≥7.90."""
    down, up = (mbit(known(node, f"{way}_mbit"), known(node, f"{way}_least_mbit")) for way in ("down", "up"))
    return f"{down} {up}".replace("≥ ", "≥")


def _is_adapted(node: pb.NodeInfo) -> bool:
    """Return whether the node's latest transfers had codecs, or shared several connections."""
    several = max(node.connections_down, node.connections_up) > 1
    return several or node.codecs not in ("", str(NO_CODECS))


def connections_of(node: pb.NodeInfo) -> str:
    """Return the connections of a node's latest transfers, down and up: 4 16."""
    return " ".join(number(known(node, f"connections_{way}")) for way in ("down", "up"))


def _profile(link: net.LinkInfo | None) -> Text:
    if link is None:
        return Text("–")
    return Text(f"{link.profile} ⚡", "red") if link.active_events else Text(link.profile)


def _delay(link: net.LinkInfo | None, name: str) -> str:
    """Return the injected delay of a round trip."""
    parts = [] if link is None else [known(link.up, name), known(link.down, name)]
    told = [part for part in parts if part is not None]
    return milliseconds(sum(told) if told else None)


def _decisions(decisions: Sequence[pb.DecisionRecord], rows: int) -> Panel:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    for heading in ("round", "decision", "about", "reason"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "round" else "left")
    table.add_column("figures", no_wrap=True, ratio=1, overflow="ellipsis")
    for decision in decisions[:rows]:
        reason = Text(decision.reason, "bold")
        table.add_row(str(decision.round), decision.kind, decision.subject, reason, decision.detail)
    return Panel(table, title="decisions", title_align="left", box=box.ROUNDED)
