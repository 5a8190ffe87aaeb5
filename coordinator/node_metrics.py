"""Prometheus metrics of each node and of the adaptation.

The figures are read on the event loop every few seconds and served from the HTTP thread, which sees a finished snapshot
or the one before, and never waits for the loop.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hypergpu.common.background import OnResult, PeriodicTask
from hypergpu.common.connections import Connections
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.adaptation import AdaptationPolicy, AdaptiveOrchestrator, Phase
from hypergpu.coordinator.core.links import ConnectionQuality
from hypergpu.coordinator.core.links.profile import MBIT, LinkProfile
from hypergpu.coordinator.core.links.quality import CLASSES, OFFLINE
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Member
from hypergpu.coordinator.core.rounds.state import RunState
from hypergpu.coordinator.core.selection import NodeState

REFRESH_SECONDS = 2.0
MOST_NODES = 1_000
"""Largest number of nodes with series of their own, since more would overload a Prometheus server."""
_AT_ONCE = 50
"""Number of nodes that are read before yielding to the event loop."""
_RANK = {quality: rank for rank, quality in enumerate(reversed(CLASSES[: OFFLINE + 1]))}
"""Quality as a number, from 0 (offline) to 5 (excellent)."""
_STANDING = {state: number for number, state in enumerate(NodeState)}


@dataclass(frozen=True, slots=True)
class _Row:
    node: str
    connected: bool
    quality: int | None
    """None before the first measurement; so are `score` and, without an attempt, `contribution`."""
    score: float | None
    points: tuple[tuple[str, float], ...]
    latency_seconds: float
    loss: float
    rates: tuple[tuple[str, float, float, float, float], ...]
    """Direction, rate, spread and least rate in bytes per second, and age in seconds."""
    batch_size: int | None
    selected: bool
    standing: int
    contribution: float | None
    usefulness: float | None
    rounds: int
    late: int
    codecs: TransferCodecs | None
    noise: float
    connections: Connections | None
    utilisation: float | None
    spent: float


@dataclass(frozen=True, slots=True)
class _Snapshot:
    rows: tuple[_Row, ...] = ()
    state: str = RunState.WAITING
    phase: str = Phase.INITIALIZATION
    policy: str = AdaptationPolicy.NONE
    overhead: float | None = None
    rollbacks: int = 0


class NodeMetricsCollector(Collector):
    """Collector that refreshes its snapshot between `start` and `stop`."""

    def __init__(
        self,
        registry: CollectorRegistry,
        machine: RoundMachine,
        orchestrator: AdaptiveOrchestrator,
        on_result: OnResult = lambda error: None,
    ) -> None:
        self._machine, self._orchestrator = machine, orchestrator
        self._snapshot = _Snapshot()
        self._refreshing = PeriodicTask(self.refresh, REFRESH_SECONDS, on_result)
        registry.register(self)

    def start(self) -> None:
        """Start refreshing."""
        self._refreshing.start()

    async def stop(self) -> None:
        """Stop refreshing."""
        await self._refreshing.stop()

    async def refresh(self) -> None:
        """Take a new snapshot."""
        selected = frozenset(self._machine.selected)
        members = [member for member in self._machine.members if member.connection is not ConnectionState.LEFT][
            :MOST_NODES
        ]
        rows: list[_Row] = []
        useful = self._machine.members.usefulness()
        for start in range(0, len(members), _AT_ONCE):
            rows += self._rows(members[start : start + _AT_ONCE], selected, useful)
            await asyncio.sleep(0)
        status = self._orchestrator.get_orchestrator_status()
        self._snapshot = _Snapshot(
            rows=tuple(rows),
            state=str(self._machine.state),
            phase=status["phase"],
            policy=status["policy"],
            overhead=status["overhead"]["share_of_round_time"],
            rollbacks=status["rollbacks"],
        )

    def collect(self) -> Iterator[Metric]:
        """Return the last snapshot as metric families."""
        snapshot = self._snapshot
        yield _states("run_state", "1 for the current state of the run.", "state", RunState, snapshot.state)
        yield _states("phase", "1 for the current phase of the adaptation.", "phase", Phase, snapshot.phase)
        yield _states("policy", "1 for the current adaptation policy.", "policy", AdaptationPolicy, snapshot.policy)
        overhead = GaugeMetricFamily(
            "hypergpu_adaptation_overhead_ratio", "Share of the round time that adaptation decisions take.", labels=[]
        )
        _add(overhead, [], snapshot.overhead)
        yield overhead
        yield CounterMetricFamily("hypergpu_rollbacks", "Configuration rollbacks.", snapshot.rollbacks)
        yield from self._links(snapshot.rows)
        yield from self._rates(snapshot.rows)
        yield from self._members(snapshot.rows)
        yield from self._contributions(snapshot.rows)

    @staticmethod
    def _links(rows: tuple[_Row, ...]) -> Iterator[Metric]:
        quality = _by_node(
            "link_quality", "Quality class of the link: 0 offline, 1 critical, 2 poor, 3 fair, 4 good, 5 excellent."
        )
        score = _by_node("link_score", "Score of the link, 0 to 100.")
        points = _by_node(
            "link_score_points", "Parts of the score: latency up to 40, loss and reliability up to 30.", "part"
        )
        latency = _by_node("link_latency_seconds", "Median round trip of the link.")
        loss = _by_node("link_loss_ratio", "Smoothed share of lost communications.")
        for row in rows:
            node = [row.node]
            _add(quality, node, row.quality)
            _add(score, node, row.score)
            for part, value in row.points:
                points.add_metric([row.node, part], value)
            _add(latency, node, row.latency_seconds)
            _add(loss, node, row.loss)
        yield from (quality, score, points, latency, loss)

    @staticmethod
    def _rates(rows: tuple[_Row, ...]) -> Iterator[Metric]:
        families = (
            _by_node("link_rate_bytes_per_second", "Rate of the link, measured from transfers.", "direction"),
            _by_node("link_rate_spread_bytes_per_second", "Half of the interquartile range of that rate.", "direction"),
            _by_node("link_rate_least_bytes_per_second", "Rate that the link has shown at least.", "direction"),
            _by_node("link_rate_age_seconds", "Time since the latest transfer that counts for the rate.", "direction"),
        )
        for row in rows:
            for direction, *figures in row.rates:
                for family, value in zip(families, figures, strict=True):
                    _add(family, [row.node, direction], value)
        yield from families

    @staticmethod
    def _members(rows: tuple[_Row, ...]) -> Iterator[Metric]:
        connected = _by_node(
            "member_connected", "1 while the node is connected, 0 when it is lost; no series after it left."
        )
        batch = _by_node("member_batch_size", "Samples per local step of the node's last work unit.")
        selected = _by_node("member_selected", "1 while the node takes part in the running round.")
        standing = _by_node("member_standing", "Selection state of the node: 0 active, 1 on probation, 2 quarantined.")
        rounds = CounterMetricFamily(
            "hypergpu_member_rounds", "Rounds that the node contributed to.", labels=["node_id"]
        )
        late = CounterMetricFamily(
            "hypergpu_member_late_updates", "Updates that arrived too late to count.", labels=["node_id"]
        )
        spent = _by_node("member_spent", "Price of the rounds for which the node was selected.")
        codecs = _by_node("member_codec", "1 for the codecs of the node's last update.", "update", "parameters")
        noise = _by_node("member_codec_noise_ratio", "Noise of the codec of that update.")
        connections = _by_node("member_connections", "Connections of the node's last transfer.", "direction")
        utilisation = _by_node("member_compute_utilisation", "Share of its rounds' time in which the node computed.")
        for row in rows:
            node = [row.node]
            if row.codecs is not None:
                codecs.add_metric([row.node, row.codecs.update, row.codecs.parameters], 1.0)
                noise.add_metric(node, row.noise)
            if row.connections is not None:
                connections.add_metric([row.node, "down"], row.connections.down)
                connections.add_metric([row.node, "up"], row.connections.up)
            _add(utilisation, node, row.utilisation)
            connected.add_metric(node, row.connected)
            _add(batch, node, row.batch_size)
            selected.add_metric(node, row.selected)
            standing.add_metric(node, row.standing)
            rounds.add_metric(node, row.rounds)
            late.add_metric(node, row.late)
            spent.add_metric(node, row.spent)
        yield from (connected, batch, selected, standing, rounds, late, codecs, noise)
        yield from (connections, utilisation, spent)

    @staticmethod
    def _contributions(rows: tuple[_Row, ...]) -> Iterator[Metric]:
        contribution = _by_node(
            "member_contribution_ratio", "Contribution score of the node: half efficiency, half reliability."
        )
        usefulness = _by_node(
            "member_usefulness_ratio",
            "Share of the node in the points of all nodes, by the directions of their updates.",
        )
        for row in rows:
            _add(contribution, [row.node], row.contribution)
            _add(usefulness, [row.node], row.usefulness)
        yield from (contribution, usefulness)

    def _rows(
        self, members: Sequence[Member], selected: Set[str], useful: Mapping[str, tuple[float, float]]
    ) -> Iterator[_Row]:
        """Yield the rows of members; those of a run that was resumed, and not back yet, have none."""
        monitor, selector = self._orchestrator.monitor, self._orchestrator.selector
        known = [each for each in members if monitor.knows(each.node_id) and selector.knows(each.node_id)]
        if not known:
            return
        names = [each.node_id for each in known]
        links, standings = monitor.get_node_profiles(names), selector.standings(names)
        for member, link, (state, contribution) in zip(known, links, standings, strict=True):
            found, _ = useful.get(member.node_id, (None, None))
            yield _row(member, link, state, (contribution, found), selected=member.node_id in selected)


def _row(
    member: Member,
    link: LinkProfile,
    state: NodeState,
    contribution: tuple[float | None, float | None],
    *,
    selected: bool,
) -> _Row:
    node, connected = member.node_id, member.connection is ConnectionState.CONNECTED
    known = link.measured or not connected
    points = {"latency": link.latency_score, "loss": link.loss_score, "reliability": link.reliability_score}
    return _Row(
        node=node,
        connected=connected,
        quality=_RANK[link.quality if connected else ConnectionQuality.OFFLINE] if known else None,
        score=link.score if known else None,
        points=tuple(points.items()) if known else (),
        latency_seconds=link.latency_ms / 1000.0,
        loss=link.loss_rate if known else math.nan,
        rates=_rates_of(link),
        batch_size=member.batch_size or None,
        selected=selected,
        standing=_STANDING[state],
        contribution=contribution[0],
        usefulness=contribution[1],
        rounds=member.rounds_contributed,
        late=member.late,
        codecs=member.codecs,
        noise=member.noise,
        connections=member.connections,
        utilisation=member.utilisation,
        spent=member.spent,
    )


def _rates_of(link: LinkProfile) -> tuple[tuple[str, float, float, float, float], ...]:
    """Return the rates of a link for `_Row`."""
    figures = link.rates()
    return tuple(
        (
            direction,
            figures[f"{direction}_mbit"] / MBIT,
            figures[f"{direction}_spread_mbit"] / MBIT,
            figures[f"{direction}_least_mbit"] / MBIT,
            figures[f"{direction}_age_seconds"],
        )
        for direction in ("down", "up")
    )


def _add(family: GaugeMetricFamily, labels: list[str], value: float | None) -> None:
    """Add a sample, if the value is known."""
    if value is not None and math.isfinite(value):
        family.add_metric(labels, value)


def _by_node(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"hypergpu_{name}", text, labels=["node_id", *labels])


def _states(name: str, text: str, label: str, known: type[RunState | Phase | AdaptationPolicy], now: str) -> Metric:
    family = GaugeMetricFamily(f"hypergpu_{name}", text, labels=[label])
    for each in known:
        family.add_metric([str(each)], each == now)
    return family
