"""Questions to a link, and its answers."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple


class Direction(StrEnum):
    """Which path of a link."""

    UP = "up"
    """From the node to the upstream."""
    DOWN = "down"
    """From the upstream to the node."""

    ordinal: int
    """0 for UP, 1 for DOWN: the index of a direction in pairs of both."""

    def __init__(self, value: str) -> None:
        self.ordinal = 0 if value == "up" else 1

    @property
    def opposite(self) -> "Direction":
        """The other path."""
        return Direction.DOWN if self is Direction.UP else Direction.UP


UP: Final = Direction.UP
DOWN: Final = Direction.DOWN
DIRECTIONS: Final = (UP, DOWN)


class LossModel(StrEnum):
    """Effect of packet loss above TCP."""

    RPC = "rpc"
    """An RPC fails."""
    TRANSPORT = "transport"
    """Nothing fails; a transfer takes as long as TCP needs to send again what was lost."""


class Cause(StrEnum):
    """Why something fails or waits."""

    LOSS = "loss"
    DISCONNECTED = "disconnected"
    PARTITIONED = "partitioned"
    FLAPPING = "flapping"
    HALF_OPEN = "half_open"
    TIMEOUT = "timeout"
    """Nothing passes until the connection is closed."""
    LIMIT_DATA = "limit_data"
    """The connection has carried what it may, and is over."""
    LIMIT_TIME = "limit_time"
    """The connection has lasted as long as it may, and is over."""


@dataclass(slots=True)
class Deliver:
    """The piece arrives at `at`, in seconds on the caller's scale."""

    at: float


class Fail(NamedTuple):
    """The RPC fails, and its client learns of it at `at`; nothing more of it passes."""

    at: float
    cause: Cause


class Hold(NamedTuple):
    """Nothing passes: offer the same piece again at `until`, or when an event has changed the link.

    An infinite `until` with the cause `half_open` is for good.
    """

    until: float
    cause: Cause


_NEVER: Final = -math.inf


class Exchange:
    """One RPC on a link, or (index below 0) what a connection sends that belongs to no RPC."""

    __slots__ = ("arrived", "connection", "index", "lost_after", "lost_on", "messages", "moved", "quantile", "score")

    def __init__(self, index: int, connection: int, quantile: float, score: float) -> None:
        self.index = index
        self.connection = connection
        self.quantile = quantile
        self.score = score
        self.messages = 0
        self.lost_on: Direction | None = None
        self.lost_after = 0.0
        self.moved = 0
        self.arrived = [_NEVER, _NEVER]  # up, down


RECENT_MESSAGES: Final = 16
"""A few rounds of a node: its calls for work, its updates and heartbeats."""


class DirectionCounters:
    """Counters of one direction."""

    __slots__ = ("bytes", "delay_seconds", "messages", "recent_seconds")

    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0
        self.delay_seconds = 0.0
        """Summed over messages: from the offer of the first piece to its arrival."""
        self.recent_seconds = 0.0
        """Mean of the same over about the last `RECENT_MESSAGES`, exponentially weighted."""

    def delayed(self, seconds: float) -> None:
        """Count a message and its delay."""
        self.messages = messages = self.messages + 1
        self.delay_seconds += seconds
        share = messages if messages < RECENT_MESSAGES else RECENT_MESSAGES
        self.recent_seconds += (seconds - self.recent_seconds) / share
