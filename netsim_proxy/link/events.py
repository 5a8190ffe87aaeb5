"""Events on links, and their times."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hypergpu.common.errors import InvalidInput, UnknownName

ALL: Final = "*"
"""Names every link, also those that are seen for the first time later on."""
UPSTREAM: Final = "upstream"
"""Names the far end of every link (the coordinator) in a partition."""

_MOST: Final = 1e12
"""Largest figure of an event; a time of any usual clock is below it."""
_LEAST_FACTOR: Final = 1e-9
_AMOUNTS: Final = (
    "duration_seconds",
    "factor",
    "added_ms",
    "period_seconds",
    "scheduled_time",
    "limit_bytes",
    "close_after_seconds",
)


class EventType(StrEnum):
    """The kinds of event."""

    LATENCY_SPIKE = "latency_spike"
    PROFILE_CHANGE = "profile_change"
    DISCONNECT = "disconnect"
    PARTITION = "partition"
    BANDWIDTH_COLLAPSE = "bandwidth_collapse"
    FLAP = "flap"
    LIMIT_DATA = "limit_data"
    """A connection is closed when it has carried so many bytes."""
    LIMIT_TIME = "limit_time"
    """A connection is closed when it has lasted so long."""
    TIMEOUT = "timeout"
    """Nothing passes, and a connection is closed after so long."""
    SLOW_CLOSE = "slow_close"
    """The end of a connection arrives so much later."""
    RECOVERY = "recovery"


class EventDirection(StrEnum):
    """Which paths of a link an event acts on."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"

    @property
    def opposite(self) -> "EventDirection":
        """The other path; of both there is none, and it stays both."""
        return {self.UP: EventDirection.DOWN, self.DOWN: EventDirection.UP}.get(self, self)


class DisconnectMode(StrEnum):
    """How a link ends."""

    RESET = "reset"
    """Connections are reset, and refused until it is over."""
    BLACK_HOLE = "black_hole"
    """Nothing passes and nobody is told; what was sent passes once it is over, as TCP would send it again."""
    HALF_OPEN = "half_open"
    """The far end has forgotten the connections that there are: they stay silent for good, new ones work."""


_CLOSING: Final = (EventType.LIMIT_TIME, EventType.TIMEOUT, EventType.SLOW_CLOSE)


@dataclass(frozen=True, slots=True)
class NetworkEvent:
    """One event: what happens, to which nodes, and when; at once where no time and no round is given.

    The fields are those of `hypergpu.netsim.v1.Event`; `target_node` and `new_profile` are its `nodes` and `profile`.
    """

    event_type: str
    """One of `EventType`."""
    target_node: str | None = None
    """The node whose link it happens to; "*" = all."""
    new_profile: str = ""
    """New profile (profile_change)."""
    scheduled_time: float | None = None
    """Seconds on the clock of whoever runs the event."""
    scheduled_round: int | None = None
    """The training round at whose start it happens."""
    nodes: tuple[str, ...] = ()
    """More nodes than one."""
    duration_seconds: float = 0.0
    """How long it lasts; 0 = until a recovery. Ignored by profile_change without one, which is for good."""
    factor: float = 0.0
    """Factor of latencies (latency_spike), or share of the bandwidth that is left (bandwidth_collapse)."""
    added_ms: float = 0.0
    """Milliseconds added to a round trip (latency_spike): half on either path, all of it if there is a direction."""
    mode: str = ""
    """Kind of disconnection, one of `DisconnectMode` (disconnect, flap). The default is a reset; for a flap, and in one
    direction only, a black hole."""
    period_seconds: float = 0.0
    """Seconds of one time down and up again, half each (flap)."""
    group_b: tuple[str, ...] = ()
    """Nodes on the other side (partition). The upstream is on it, unless `nodes` names "upstream"."""
    direction: str = EventDirection.BOTH
    """Which path it acts on: "up" from the node to the upstream, "down" to the node, or "both"."""
    limit_bytes: int = 0
    """Bytes that each connection carries in each direction before it is closed (limit_data)."""
    close_after_seconds: float = 0.0
    """Seconds that each connection lasts from then on (limit_time, timeout), or by which its end arrives later
    (slow_close)."""

    def __post_init__(self) -> None:
        _require_known("event type", self.event_type, EventType)
        if self.mode:
            _require_known("mode", self.mode, DisconnectMode)
        _require_known("direction", self.direction, EventDirection)
        for name in _AMOUNTS:
            value = getattr(self, name) or 0.0
            if not 0 <= value <= _MOST:
                raise InvalidInput(f"{self.event_type}: {name} is 0 to {_MOST:g}, not {value:g}")
        if 0 < self.factor < _LEAST_FACTOR:
            raise InvalidInput(f"{self.event_type}: a factor is {_LEAST_FACTOR:g} or more, not {self.factor:g}")
        if self.event_type == EventType.PROFILE_CHANGE and not self.new_profile:
            raise InvalidInput("profile_change needs the new profile")
        if self.event_type == EventType.LIMIT_DATA and not self.limit_bytes:
            raise InvalidInput("limit_data needs limit_bytes: 1 or more")
        if self.event_type in _CLOSING and not self.close_after_seconds:
            raise InvalidInput(f"{self.event_type} needs close_after_seconds: more than 0")
        if self.scheduled_time is not None and self.scheduled_round is not None:
            raise InvalidInput(f"{self.event_type} is due by time or by round, not by both")
        if not (self.targets or self.event_type == EventType.RECOVERY):
            raise InvalidInput(f'{self.event_type} needs a target: a node id, or "{ALL}"')

    @property
    def targets(self) -> tuple[str, ...]:
        """The ids of the links that it happens to; may hold `ALL`."""
        if self.event_type == EventType.PARTITION and UPSTREAM in self.nodes:
            return self.group_b or (ALL,)
        if self.event_type == EventType.RECOVERY and self.target_node is None and not self.nodes:
            return (ALL,)
        return self.nodes if self.target_node is None else (self.target_node, *self.nodes)

    @property
    def size(self) -> int:
        """How many link names it holds."""
        return len(self.nodes) + len(self.group_b) + (self.target_node is not None)

    def concerned(self, node_ids: Iterable[str]) -> list[str]:
        """Return those of `node_ids` whose links it happens to."""
        targets = frozenset(self.targets)
        if self.event_type == EventType.PARTITION and UPSTREAM in self.nodes and targets == {ALL}:
            spared = frozenset(self.nodes)
            return [node_id for node_id in node_ids if node_id not in spared]
        return list(node_ids) if ALL in targets else [node_id for node_id in node_ids if node_id in targets]

    def concerns(self, node_id: str) -> bool:
        """Whether it happens to this node's link."""
        return bool(self.concerned((node_id,)))

    def summary(self) -> str:
        """One line for people: `latency_spike on node_1 for 5 s: +200 ms`."""
        parts = [f"{self.event_type} on {', '.join(self.targets)}"]
        if self.duration_seconds:
            parts.append(f"for {self.duration_seconds:g} s")
        details = [self.new_profile, self.mode, self.direction if self.direction != EventDirection.BOTH else ""]
        details += [f"×{self.factor:g}"] if self.factor else []
        details += [f"+{self.added_ms:g} ms"] if self.added_ms else []
        details += [f"every {self.period_seconds:g} s"] if self.period_seconds else []
        details += [f"after {self.limit_bytes} bytes"] if self.limit_bytes else []
        details += [f"after {self.close_after_seconds:g} s"] if self.close_after_seconds else []
        told = ", ".join(detail for detail in details if detail)
        return " ".join(parts) + (f": {told}" if told else "")


def _require_known(kind: str, name: str, known: type[StrEnum]) -> None:
    if name not in known._value2member_map_:
        raise UnknownName(kind, name, [member.value for member in known])
