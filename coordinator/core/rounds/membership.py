"""Who is there: joined, lost, left, and what each node has done so far."""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hypergpu.common.errors import NotFound, ResourceExhausted


class ConnectionState(StrEnum):
    """Whether a node is there."""

    CONNECTED = "connected"
    LOST = "lost"
    """Silent for too long; its place is kept for a while."""
    LEFT = "left"


@dataclass(slots=True)
class Member:
    """One node, as the coordinator knows it."""

    node_id: str
    incarnation: str = ""
    connection: ConnectionState = ConnectionState.CONNECTED
    reason: str = ""
    joined_at: float = 0.0
    last_seen: float = 0.0
    gone_at: float = 0.0
    completed: bool = False
    """It left because the run was over."""
    requesting: bool = False
    """It waits for a work unit."""
    ready: bool = False
    """It has asked for work since its process joined: its model and data are there. Until then nobody counts on it."""
    has_same_task: bool = False
    """It has shown that its data and model are the coordinator's."""
    largest_batch: int = 0
    batch_size: int = 0
    last_accepted: int = 0
    """The last round that it contributed to."""
    rounds_contributed: int = 0
    rounds_selected: int = 0
    retries: int = 0
    late: int = 0
    compute_seconds: float = 0.0
    info: Mapping[str, str] = field(default_factory=dict)


class Membership:
    """All nodes of a run. Each call takes O(log nodes) at most."""

    def __init__(self, *, max_nodes: int, lost_after_seconds: float | None) -> None:
        self._max_nodes = max_nodes
        self._lost_after = lost_after_seconds
        self._members: dict[str, Member] = {}
        self._connected: dict[str, Member] = {}
        self.connected: Mapping[str, Member] = self._connected
        """The nodes that are there, in the order in which they came."""
        self._silence: list[tuple[float, str]] = []
        self._watched: set[str] = set()
        self.stragglers: set[str] = set()
        """Connected nodes that still work on a round which was closed without them: not counted on till they return."""
        self.ready = 0
        """How many of the connected are ready."""
        self.version = 0
        """Changes whenever a node comes or goes."""
        self._ended: set[str] = set()
        self._asked_at = math.inf

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, node: str) -> Member | None:
        """The node, if it was ever there."""
        return self._members.get(node)

    def require(self, node: str) -> Member:
        """The node.

        Raises:
            NotFound: it never registered.
        """
        member = self._members.get(node)
        if member is None:
            raise NotFound(f"node {node!r} is not registered with this coordinator; register first")
        return member

    def admit(self, node: str) -> None:
        """Check that there is room for `node`.

        Raises:
            ResourceExhausted: as many nodes as are allowed are there already.
        """
        if node not in self._connected and len(self._connected) >= self._max_nodes:
            raise ResourceExhausted(
                f"{self._max_nodes} nodes are registered, and no more are allowed (server.max_nodes)"
            )

    def join(self, node: str, incarnation: str, now: float) -> tuple[Member, bool]:
        """A node registers; True if it had not been there.

        Raises:
            ResourceExhausted: as `admit`.
        """
        self.admit(node)
        member = self._members.get(node)
        if member is None:
            self._forget_surplus()
            member = self._members[node] = Member(node)
        new = node not in self._connected
        if new or member.incarnation != incarnation:
            if member.incarnation not in ("", incarnation):
                self._ended.add(node)
            member.joined_at, member.requesting = now, False
            self._set_ready(member, ready=False)
            self.stragglers.discard(node)
        member.incarnation, member.connection, member.reason, member.last_seen = (
            incarnation,
            ConnectionState.CONNECTED,
            "",
            now,
        )
        if new:
            self._connected[node] = member
            self._asked_at = min(self._asked_at, now)
            self.version += 1
            if self._lost_after is not None and node not in self._watched:
                self._watched.add(node)
                heapq.heappush(self._silence, (now + self._lost_after, node))
        return member, new

    def seen(self, node: str, now: float) -> bool:
        """Note a sign of life at `now`; return False if the node is not connected."""
        member = self._connected.get(node)
        if member is None:
            return False
        member.last_seen = max(member.last_seen, now)  # virtual time dates heartbeats ahead
        return True

    def mark_requesting(self, member: Member) -> bool:
        """It waits for a work unit; True if that is the first that it asks for."""
        member.requesting = True
        first = not member.ready
        self._set_ready(member, ready=True)
        return first

    def remove(self, node: str, connection: ConnectionState, reason: str, now: float) -> Member | None:
        """The node is gone; None if it was already, and only its kind of absence changed."""
        member = self._connected.pop(node, None)
        if member is None:
            if connection is ConnectionState.LEFT and node in self._members:
                self._members[node].connection = connection
                self.version += 1
            return None
        member.connection, member.reason, member.gone_at = connection, reason, now
        member.requesting = False
        self._set_ready(member, ready=False)
        self.stragglers.discard(node)
        self.version += 1
        return member

    def drain_restarts(self, now: float) -> tuple[int, float]:
        """Nodes whose process was replaced since this was last asked, and the time since, times the nodes.

        A node counts once, however often it comes anew: one alone must not make the plans of all short.
        """
        taken = len(self._ended), (now - self._asked_at) * len(self._connected)
        self._ended, self._asked_at = set(), now
        return taken

    def silent(self, now: float) -> list[str]:
        """Connected nodes that have been silent for too long. Each is named once; `remove` them."""
        found = []
        while self._silence and self._silence[0][0] <= now:
            _, node = heapq.heappop(self._silence)
            member = self._connected.get(node)
            if member is None:
                self._watched.discard(node)
                continue
            due = member.last_seen + (self._lost_after or 0.0)
            if due <= now:
                self._watched.discard(node)
                found.append(node)
            else:
                heapq.heappush(self._silence, (due, node))
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

    def next_silence(self) -> float:
        """When to look for silent nodes next; infinite = never."""
        return self._silence[0][0] if self._silence else math.inf

    def reset_liveness(self, now: float) -> None:
        """We were not running ourselves: nobody's silence in that time counts."""
        for member in self._connected.values():
            member.last_seen = now

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """What nodes did before the coordinator was restarted, as it was written then; none of them is there yet."""
        for row in rows:
            member = self._members.setdefault(row["node_id"], Member(row["node_id"], connection=ConnectionState.LOST))
            member.reason = "not back since the coordinator was restarted"
            state = row.get("state")
            if state in (ConnectionState.LEFT, ConnectionState.LOST):  # it was gone before: nobody waits for it
                member.connection, member.reason = ConnectionState.LEFT, f"{state} before the coordinator was restarted"
            for name in ("rounds_contributed", "rounds_selected", "retries", "late"):
                setattr(member, name, int(row.get(name, 0)))

    def _set_ready(self, member: Member, *, ready: bool) -> None:
        self.ready += ready - member.ready
        member.ready = ready

    def _forget_surplus(self) -> None:
        """Bound what is kept of nodes that went away."""
        if len(self._members) < 2 * self._max_nodes:
            return
        gone = sorted((m for m in self._members.values() if m.node_id not in self._connected), key=lambda m: m.gone_at)
        for member in gone[: max(1, len(gone) // 2)]:
            del self._members[member.node_id]
