"""Control of the connections of all nodes: a search for each node and direction, with its effects on expectations."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from hypergpu.common.config.transfers import TransfersConfig
from hypergpu.common.connections import ConnectionPlan, Connections, useful_connections
from hypergpu.common.tensors import STRIPE_BYTES
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.adaptation.codecs.direction_times import Direction
from hypergpu.coordinator.core.adaptation.connections.choice import (
    ConnectionsChange,
    ConnectionSearch,
    ConnectionsReason,
    Outlook,
)
from hypergpu.coordinator.core.adaptation.connections.shared_line import SharedLine
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.links import NetworkQualityMonitor

_LARGE_BYTES: Final = 1_000_000
"""Size of a model whose first transfers have several connections."""
_FIRST_IN_ALL: Final = 256
"""Connections of the first transfers of all nodes. Many nodes fill the coordinator's line together, whatever each has.

Over a clean line 16 connections take 3 % longer than one at most, over a lossy one as little as a 38th (ADR 0013)."""
_QUEUE: Final = 1.3
"""Ratio of round trips beside transfers to idle ones from which packets wait in a queue: a line that losses keep from
being full has none. Queues hold about 100 ms."""
_DIRECTIONS: Final[tuple[Direction, ...]] = ("down", "up")


class ConnectionDecision(NamedTuple):
    """Decision about the connections of a node in one direction."""

    node: str
    reason: ConnectionsReason
    figures: Figures


class ConnectionControl:
    """Connections of the transfers of all nodes.

    Args:
        config: Settings; `auto` chooses.
        monitor: Monitor of the links, whose expectations follow the choice.
        model_bytes: Size of the parameters as float32; None if unknown, which lets every search begin with one.
    """

    def __init__(self, config: TransfersConfig, monitor: NetworkQualityMonitor, model_bytes: int | None = None) -> None:
        self._config, self._monitor = config, monitor
        self._model_bytes = model_bytes or 0
        self._is_large = config.connections == "auto" and self._model_bytes >= _LARGE_BYTES
        self._first = 1
        """Connections of nodes without a search."""
        self._new: set[str] = set()
        """Nodes that have such connections, by a decision."""
        self._searches: dict[str, tuple[ConnectionSearch, ConnectionSearch]] = {}
        """Searches by node, down and up. A node whose transfers have a single chunk has none."""
        self._measured: set[str] = set()
        """Nodes with new transfers."""
        self._plan = config.fixed
        self.line = SharedLine()
        """Search for the number of nodes whose transfers share the coordinator's line."""

    @property
    def plan(self) -> ConnectionPlan:
        """Connections of each node in the coming round."""
        return self._plan

    def record_download(self, node: str, transfer: Transfer) -> None:
        """Record a transfer to a node."""
        self._record(node, 0, transfer)

    def record_upload(self, node: str, transfer: Transfer) -> None:
        """Record a transfer from a node."""
        self._record(node, 1, transfer)

    def _record(self, node: str, index: int, transfer: Transfer) -> None:
        if self._config.connections != "auto":
            return
        searches = self._searches.get(node)
        if searches is None:
            if transfer.nbytes + transfer.bytes_before <= STRIPE_BYTES:
                return
            ordered = self._plan.of(node)
            searches = self._searches[node] = (
                ConnectionSearch(ordered.down, is_guess=True),
                ConnectionSearch(ordered.up, is_guess=True),
            )
        searches[index].record(transfer)
        self._measured.add(node)

    def choose(
        self,
        available: Sequence[str],
        round_number: int,
        round_seconds: float,
        held: Mapping[str, Collection[Direction]] | None = None,
    ) -> list[ConnectionDecision]:
        """Choose the connections of the available nodes before a round; return what changed.

        Args:
            available: Connected nodes.
            round_number: Number of the coming round.
            round_seconds: Duration of the latest round.
            held: Directions of nodes in which something else is measured, so that no trial begins.
        """
        return self._begin(available) + self._search(available, round_number, round_seconds, held or {})

    def trials(self, nodes: Sequence[str]) -> dict[str, list[Direction]]:
        """Return the directions of each node in which another number is tried."""
        found = {node: self._searches[node] for node in nodes if node in self._searches}
        return {
            node: [way for way, search in zip(_DIRECTIONS, searches, strict=True) if search.is_trying]
            for node, searches in found.items()
        }

    def _begin(self, available: Sequence[str]) -> list[ConnectionDecision]:
        """Choose the connections of nodes of which nothing is measured."""
        first = self._first_of(len(available))
        if first != self._first:
            self._first = first
            self._make_plan()
        if first == 1:
            return []
        new = [node for node in available if node not in self._searches and node not in self._new]
        self._new.update(new)
        return [
            ConnectionDecision(
                node, ConnectionsReason.RATE_NOT_MEASURED, {"direction": direction, "from": 1, "to": first}
            )
            for node in new
            for direction in _DIRECTIONS
        ]

    def _first_of(self, nodes: int) -> int:
        """Return the number of connections, each way, before anything is measured."""
        if not self._is_large:
            return 1
        return useful_connections(_FIRST_IN_ALL // max(nodes, 1), self._model_bytes)

    def _search(
        self,
        available: Sequence[str],
        round_number: int,
        round_seconds: float,
        held: Mapping[str, Collection[Direction]],
    ) -> list[ConnectionDecision]:
        nodes = [node for node in available if node in self._measured]
        if not nodes:
            return []
        self._measured.difference_update(nodes)
        rows = self._monitor.rows(nodes)
        trips = 1e-3 * self._monitor.latencies_ms(rows)
        queueing = 1e-3 * self._monitor.loaded_latencies_ms(rows) >= _QUEUE * trips
        decisions = []
        for node, trip, is_queueing in zip(nodes, trips.tolist(), queueing.tolist(), strict=True):
            outlook = Outlook(round_number, round_seconds, trip, is_queueing)
            for direction, search in zip(_DIRECTIONS, self._searches[node], strict=True):
                if direction in held.get(node, ()) and not search.is_trying:
                    continue
                change = search.decide(outlook)
                if change is not None:
                    self._expect(node, direction, change)
                    figures = {"direction": direction, "from": change.before, "to": change.after, **change.figures}
                    decisions.append(ConnectionDecision(node, change.reason, figures))
        if decisions:
            self._make_plan()
        return decisions

    def use_one(self) -> None:
        """Use one connection each, or the configured number: nothing is adapted. What was measured is forgotten."""
        self._searches.clear()
        self._measured.clear()
        self._new.clear()
        self._first = 1
        self.line.most = None
        self._plan = self._config.fixed

    def state(self) -> dict[str, tuple[int, int]]:
        """Return the state for a checkpoint: the connections of each node, down and up."""
        return {node: (down.count, up.count) for node, (down, up) in self._searches.items()}

    def restore(self, state: Mapping[str, tuple[int, int]]) -> None:
        """Go on from the connections of an earlier process; rates are measured again."""
        if self._config.connections == "auto":
            self._searches = {
                node: (ConnectionSearch(down), ConnectionSearch(up)) for node, (down, up) in state.items()
            }
            self._make_plan()

    def _make_plan(self) -> None:
        counts = {node: Connections(down.count, up.count) for node, (down, up) in self._searches.items()}
        usual = Connections(self._first, self._first)
        self._plan = ConnectionPlan(usual, {node: each for node, each in counts.items() if each != usual})

    def _expect(self, node: str, direction: Direction, change: ConnectionsChange) -> None:
        """Let what is expected of a link follow from its latest measurements only: of rounds, after a verdict."""
        self._monitor.restart_rate(node, direction)
        if change.reason not in (ConnectionsReason.TRIES_MORE, ConnectionsReason.TRIES_AGAIN):
            self._monitor.restart_rounds(self._monitor.rows([node]))
