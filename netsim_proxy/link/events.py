"""Network events: changes of links at a time, in a round, or now."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hypergpu.common.errors import InvalidInput, UnknownName

ALL: Final = "*"
"""Target that stands for every link, including links that appear later."""
UPSTREAM: Final = "upstream"
"""Name of the far end of every link (the coordinator) in a partition."""

_MOST: Final = 1e12
"""Upper bound of every figure of an event; above the times of usual clocks."""
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
    """Kind of a network event."""

    LATENCY_SPIKE = "latency_spike"
    PROFILE_CHANGE = "profile_change"
    DISCONNECT = "disconnect"
    PARTITION = "partition"
    BANDWIDTH_COLLAPSE = "bandwidth_collapse"
    FLAP = "flap"
    LIMIT_DATA = "limit_data"
    """Close each connection after `limit_bytes`."""
    LIMIT_TIME = "limit_time"
    """Close each connection after `close_after_seconds`."""
    TIMEOUT = "timeout"
    """Pass nothing, and close each connection after `close_after_seconds`."""
    SLOW_CLOSE = "slow_close"
    """Delay the end of each connection by `close_after_seconds`."""
    RECOVERY = "recovery"


class EventDirection(StrEnum):
    """Direction of a link that an event affects."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"

    @property
    def opposite(self) -> "EventDirection":
        """Opposite direction; `BOTH` is its own opposite."""
        return {self.UP: EventDirection.DOWN, self.DOWN: EventDirection.UP}.get(self, self)


class DisconnectMode(StrEnum):
    """Way in which a link is disconnected."""

    RESET = "reset"
    """Reset connections, and refuse new ones until the event ends."""
    BLACK_HOLE = "black_hole"
    """Pass nothing, silently. Data sent meanwhile arrives after the event, as TCP would retransmit it."""
    HALF_OPEN = "half_open"
    """Silence the existing connections for good, as if the far end had forgotten them; new ones work."""


_CLOSING: Final = (EventType.LIMIT_TIME, EventType.TIMEOUT, EventType.SLOW_CLOSE)


@dataclass(frozen=True, slots=True)
class NetworkEvent:
    """Change of one or more links, such as a latency spike or a partition.

    It starts at `scheduled_time` or in `scheduled_round`, or at once if neither is set. Fields match
    `hypergpu.netsim.v1.Event`, where `target_node` is part of `nodes` and `new_profile` is `profile`.

    Raises:
        InvalidInput: a figure out of range, a missing field of the event type, or both a time and a round.
        UnknownName: an unknown event type, mode or direction; the message names the nearest.
    """

    event_type: str
    """One of `EventType`."""
    target_node: str | None = None
    """ID of the target node; "*" = all nodes."""
    new_profile: str = ""
    """New profile (profile_change)."""
    scheduled_time: float | None = None
    """Start time, in seconds on the clock of the proxy or simulator that runs the event."""
    scheduled_round: int | None = None
    """Training round at whose start the event starts."""
    nodes: tuple[str, ...] = ()
    """Further target nodes, in addition to `target_node`."""
    duration_seconds: float = 0.0
    """Duration; 0 = until a recovery, or permanently for profile_change."""
    factor: float = 0.0
    """Latency multiplier (latency_spike), or remaining share of the bandwidth (bandwidth_collapse)."""
    added_ms: float = 0.0
    """Milliseconds added to a round trip (latency_spike): half in each direction, or all in `direction` if set."""
    mode: str = ""
    """One of `DisconnectMode` (disconnect, flap). Default: reset; black_hole for a flap or a single direction."""
    period_seconds: float = 0.0
    """Length of one cycle, half down and half up (flap)."""
    group_b: tuple[str, ...] = ()
    """Nodes of the other group (partition). The upstream is in it unless `nodes` contains "upstream"."""
    direction: str = EventDirection.BOTH
    """Affected direction: "up" (node to upstream), "down" (upstream to node) or "both"."""
    limit_bytes: int = 0
    """Bytes per connection and direction before the connection is closed (limit_data)."""
    close_after_seconds: float = 0.0
    """Seconds until each connection is closed (limit_time, timeout), or by which its end is delayed (slow_close)."""

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
        """IDs of the affected links; may contain `ALL`."""
        if self.event_type == EventType.PARTITION and UPSTREAM in self.nodes:
            return self.group_b or (ALL,)
        if self.event_type == EventType.RECOVERY and self.target_node is None and not self.nodes:
            return (ALL,)
        return self.nodes if self.target_node is None else (self.target_node, *self.nodes)

    @property
    def size(self) -> int:
        """Number of link names in the event."""
        return len(self.nodes) + len(self.group_b) + (self.target_node is not None)

    def concerned(self, node_ids: Iterable[str]) -> list[str]:
        """Return those of `node_ids` whose links the event affects."""
        targets = frozenset(self.targets)
        if self.event_type == EventType.PARTITION and UPSTREAM in self.nodes and targets == {ALL}:
            spared = frozenset(self.nodes)
            return [node_id for node_id in node_ids if node_id not in spared]
        return list(node_ids) if ALL in targets else [node_id for node_id in node_ids if node_id in targets]

    def concerns(self, node_id: str) -> bool:
        """Return whether the event affects this node's link."""
        return bool(self.concerned((node_id,)))

    def summary(self) -> str:
        """Return a one-line description: `latency_spike on node_1 for 5 s: +200 ms`."""
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
