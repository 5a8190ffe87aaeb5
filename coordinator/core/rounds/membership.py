"""Nodes of a run: which are connected, lost or gone, and what each has done so far."""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from hypergpu.common.connections import Connections
from hypergpu.common.data_report import DataReport
from hypergpu.common.errors import NotFound, ResourceExhausted
from hypergpu.common.message import message
from hypergpu.common.node_terms import FREE, NodeTerms
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.rounds.usefulness import Useful

_COUNTS = (
    *("rounds_contributed", "rounds_selected", "retries", "late", "merged_late", "last_accepted"),
    *("judged_rounds", "measured_updates"),
)
_SUMS = ("points", "squared_points", "gains", "squared_gains")
RESTORED = (*_COUNTS, *_SUMS)
"""Counts and sums of a node that outlast a process of the coordinator."""


INTERVAL: Final = 1.96
"""Half of a 95 % confidence interval, in standard deviations."""
_KEPT_GHOSTS: Final = 100
"""Disconnected nodes beyond which one that was lost, and had never asked for work, is forgotten at once."""


class ConnectionState(StrEnum):
    """Connection of a node to the coordinator."""

    CONNECTED = "connected"
    LOST = "lost"
    """Silent for too long; its shard is kept for a while."""
    LEFT = "left"


@message
class Assignment:
    """Latest work of a node, which it has not delivered."""

    round: int
    at: float
    """Time at which the node's process got it."""
    batch_size: int
    local_steps: int
    deadline_at: float
    """Deadline of the round: when it was assigned, or when the round closed."""
    may_finish_until: float = -math.inf
    """Time until which a straggler may go on with it; known when its round has closed."""


@dataclass(slots=True)
class Member:
    """State of one node of the run."""

    node_id: str
    incarnation: str = ""
    connection: ConnectionState = ConnectionState.CONNECTED
    reason: str = ""
    joined_at: float = 0.0
    last_seen: float = 0.0
    gone_at: float = 0.0
    completed: bool = False
    """True if it left after the end of the run."""
    requesting: bool = False
    """True if it waits for work."""
    ready: bool = False
    """True if its process has asked for work: its model and data are loaded. Others are not selected."""
    has_same_task: bool = False
    """True if its data and model are known to equal those of the coordinator."""
    terms: NodeTerms = FREE
    data: DataReport | None = None
    """Its report of the samples that it alone holds; None if it gives none."""
    largest_batch: int = 0
    batch_size: int = 0
    last_accepted: int = 0
    """Latest round that it contributed to; 0 = none."""
    rounds_contributed: int = 0
    rounds_selected: int = 0
    retries: int = 0
    late: int = 0
    """Updates that were too late to count."""
    merged_late: int = 0
    """Updates that counted in a later round than their own."""
    judged_rounds: int = 0
    """Rounds in which the usefulness of its update was measured."""
    points: float = 0.0
    """Points of its updates."""
    squared_points: float = 0.0
    """Sum of the squares of those of each round."""
    measured_updates: int = 0
    """Updates whose gain on held-out data was measured."""
    gains: float = 0.0
    """Sum of these gains: the loss before the update, less the loss after it."""
    squared_gains: float = 0.0
    compute_seconds: float = 0.0
    codecs: TransferCodecs | None = None
    """Codecs of its latest accepted update and of the parameters before it; None before the first."""
    noise: float = 0.0
    """Noise of that update's codec."""
    connections: Connections | None = None
    """Connections of the transfers of that update and those parameters."""
    computed_seconds: float = 0.0
    """Time that it computed for updates that counted."""
    selected_seconds: float = 0.0
    """Duration of the closed rounds for which it was selected."""
    assignment: Assignment | None = None
    info: Mapping[str, str] = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """Price of the closed rounds for which it was selected."""
        return self.terms.spent(self.selected_seconds)

    @property
    def points_deviation(self) -> float:
        """Standard deviation of its points, by those of its rounds; infinite if there was only one."""
        return _deviation(self.judged_rounds, self.points, self.squared_points)

    @property
    def gain(self) -> tuple[float, float] | None:
        """Mean gain of its updates, and half its 95 % confidence interval; None if none was measured."""
        count = self.measured_updates
        if not count:
            return None
        return self.gains / count, INTERVAL * _deviation(count, self.gains, self.squared_gains) / count

    def add_gain(self, gain: float) -> None:
        """Add the gain of an update."""
        self.measured_updates += 1
        self.gains += gain
        self.squared_gains += gain**2

    @property
    def utilisation(self) -> float | None:
        """Share of its rounds' time in which it computed; None before its first round has closed."""
        return self.computed_seconds / self.selected_seconds if self.selected_seconds > 0.0 else None


class Membership:
    """All nodes of a run. Each method takes O(log nodes) at most."""

    def __init__(self, *, max_nodes: int, lost_after_seconds: float | None) -> None:
        self._max_nodes = max_nodes
        self.lost_after_seconds = lost_after_seconds
        self._members: dict[str, Member] = {}
        self.connected: dict[str, Member] = {}
        """Connected nodes by id, in the order in which they joined."""
        self._silence: list[tuple[float, str]] = []
        self._watched: set[str] = set()
        self.silent_at = math.inf
        """Time to look for silent nodes next; infinite = never."""
        self.stragglers: dict[str, bool] = {}
        """Connected nodes that still work on a round that closed without them; not selected until they return.

        The value tells whether that round had waited for them.
        """
        self.ready = 0
        """Number of connected nodes that are ready."""
        self.version = 0
        """Increases whenever a node joins, leaves or is lost."""
        self._restarted: set[str] = set()
        self._drained_at = math.inf

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    @property
    def spent(self) -> float:
        """Price of all nodes in the closed rounds for which they were selected."""
        return math.fsum(member.spent for member in self)

    def get(self, node: str) -> Member | None:
        """Return the node, or None if it never registered."""
        return self._members.get(node)

    def require(self, node: str) -> Member:
        """Return the node.

        Raises:
            NotFound: it never registered.
        """
        member = self._members.get(node)
        if member is None:
            raise NotFound(f"node {node!r} is not registered with this coordinator; register first")
        return member

    def admit(self, node: str) -> None:
        """Check that `node` may connect.

        Raises:
            ResourceExhausted: the limit of connected nodes is reached.
        """
        if node not in self.connected and len(self.connected) >= self._max_nodes:
            raise ResourceExhausted(
                f"{self._max_nodes} nodes are connected, the limit set by server.max_nodes; raise it to admit more"
            )

    def ghost(self, node: str) -> str:
        """Return the node that has to go so that `node` may connect; empty if there is room, or nobody to go.

        It is the oldest one that never asked for work: whoever fills the run with names does not keep others out.
        """
        if node in self.connected or len(self.connected) < self._max_nodes:
            return ""
        return next((member.node_id for member in self.connected.values() if not member.ready), "")

    def join(self, node: str, incarnation: str, now: float) -> tuple[Member, bool]:
        """Connect a node; return it and whether it was not connected before.

        Raises:
            ResourceExhausted: as `admit`.
        """
        self.admit(node)
        member = self._members.get(node)
        if member is None:
            self._forget_disconnected()
            member = self._members[node] = Member(node)
        new = node not in self.connected
        if new or member.incarnation != incarnation:
            if member.incarnation not in ("", incarnation):
                self._restarted.add(node)
            member.joined_at, member.requesting = now, False
            self._set_ready(member, ready=False)
            self.stragglers.pop(node, None)
        member.incarnation, member.connection, member.reason, member.last_seen = (
            incarnation,
            ConnectionState.CONNECTED,
            "",
            now,
        )
        if new:
            self.connected[node] = member
            self._drained_at = min(self._drained_at, now)
            self.version += 1
            if self.lost_after_seconds is not None and node not in self._watched:
                self._watched.add(node)
                heapq.heappush(self._silence, (now + self.lost_after_seconds, node))
                self.silent_at = self._silence[0][0]
        return member, new

    def seen(self, node: str, now: float) -> bool:
        """Note a sign of life at `now`; return False if the node is not connected."""
        member = self.connected.get(node)
        if member is None:
            return False
        if now > member.last_seen:  # noqa: PLR1730  (a third of what `max` takes; virtual time dates heartbeats ahead)
            member.last_seen = now
        return True

    def mark_requesting(self, member: Member, now: float) -> bool:
        """Note that the node waits for work, a sign of life; return whether its process asks for the first time."""
        if now > member.last_seen:  # noqa: PLR1730  (as in `seen`)
            member.last_seen = now
        member.requesting = True
        if member.ready:
            return False
        self._set_ready(member, ready=True)
        return True

    def remove(self, node: str, connection: ConnectionState, reason: str, now: float) -> Member | None:
        """Disconnect a node and return it; None if it was not connected."""
        member = self.connected.pop(node, None)
        if member is None:
            if connection is ConnectionState.LEFT and node in self._members:
                self._members[node].connection = connection
                self.version += 1
            return None
        is_ghost = connection is ConnectionState.LOST and not member.ready and not member.rounds_selected
        if is_ghost and len(self._members) - len(self.connected) > _KEPT_GHOSTS:
            del self._members[node]
        member.connection, member.reason, member.gone_at = connection, reason, now
        member.requesting = False
        self._set_ready(member, ready=False)
        self.stragglers.pop(node, None)
        self.version += 1
        return member

    def drain_restarts(self, now: float) -> tuple[int, float]:
        """Return how many nodes restarted since the last call, and the node-seconds since.

        A node counts once, however often it restarts: one node must not shorten the plans of all.
        """
        drained = len(self._restarted), (now - self._drained_at) * len(self.connected)
        self._restarted, self._drained_at = set(), now
        return drained

    def end_request(self, node: str) -> None:
        """Note that the node has stopped waiting for work."""
        member = self._members.get(node)
        if member is not None:
            member.requesting = False

    def silent(self, now: float) -> list[str]:
        """Return the connected nodes that have been silent for too long, each once; the caller removes them."""
        found = []
        while self._silence and self._silence[0][0] <= now:
            _, node = heapq.heappop(self._silence)
            member = self.connected.get(node)
            if member is None:
                self._watched.discard(node)
                continue
            due = member.last_seen + (self.lost_after_seconds or 0.0)
            if due <= now:
                self._watched.discard(node)
                found.append(node)
            else:
                heapq.heappush(self._silence, (due, node))
        self.silent_at = self._silence[0][0] if self._silence else math.inf
        return found

    def suspects(self, now: float) -> list[str]:
        """Return the nodes that `silent(now)` examines: a later sign of life than is known now clears them."""
        heap, found, todo = self._silence, [], [0]
        while todo:
            at = todo.pop()
            if at < len(heap) and heap[at][0] <= now:
                found.append(heap[at][1])
                todo += (2 * at + 1, 2 * at + 2)
        return found

    def reset_liveness(self, now: float) -> None:
        """Count silence from now on: this process did not run, so earlier silence means nothing."""
        for member in self.connected.values():
            member.last_seen = now

    def credit(self, useful: Iterable[Useful]) -> None:
        """Add the points of a round."""
        for each in useful:
            member = self._members.get(each.node)
            if member is not None:
                member.judged_rounds += 1
                member.points += each.points
                member.squared_points += each.points**2

    def usefulness(self) -> dict[str, tuple[float, float]]:
        """Return the share of all points of each node that was judged, and half its 95 % confidence interval.

        The points of rounds are taken as independent. A sum below zero has no share.
        """
        whole = math.fsum(max(0.0, member.points) for member in self)
        judged = [member for member in self if member.judged_rounds and whole > 0.0]
        return {
            each.node_id: (max(0.0, each.points) / whole, INTERVAL * each.points_deviation / whole) for each in judged
        }

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Restore the rows of nodes of an earlier process of the coordinator; none is connected yet."""
        for row in rows:
            member = self._members.setdefault(row["node_id"], Member(row["node_id"], connection=ConnectionState.LOST))
            member.reason = "has not reconnected since the coordinator restarted"
            state = row.get("state")
            if state in (ConnectionState.LEFT, ConnectionState.LOST):  # gone before the restart: its shard is not kept
                member.connection, member.reason = ConnectionState.LEFT, f"{state} before the coordinator restarted"
            for name in _COUNTS:
                setattr(member, name, int(row.get(name, 0)))
            for name in _SUMS:
                setattr(member, name, float(row.get(name, 0.0)))

    def _set_ready(self, member: Member, *, ready: bool) -> None:
        self.ready += ready - member.ready
        member.ready = ready

    def _forget_disconnected(self) -> None:
        """Bound the number of disconnected nodes that are kept."""
        if len(self._members) < 2 * self._max_nodes:
            return
        gone = sorted((m for m in self._members.values() if m.node_id not in self.connected), key=lambda m: m.gone_at)
        for member in gone[: max(1, len(gone) // 2)]:
            del self._members[member.node_id]


def _deviation(count: int, total: float, squares: float) -> float:
    """Return the standard deviation of a sum of independent terms, by their squares; infinite for fewer than two."""
    return math.inf if count < 2 else math.sqrt(max(0.0, squares - total**2 / count) * count / (count - 1))
