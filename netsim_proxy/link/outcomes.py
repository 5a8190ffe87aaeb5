"""Input and outcomes of a link: directions, RPCs, deliveries, failures and counters."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple


class Direction(StrEnum):
    """Direction of travel on a link."""

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
        """Opposite direction."""
        return Direction.DOWN if self is Direction.UP else Direction.UP


UP: Final = Direction.UP
DOWN: Final = Direction.DOWN
DIRECTIONS: Final = (UP, DOWN)


class LossModel(StrEnum):
    """Effect of packet loss on RPCs."""

    RPC = "rpc"
    """Fail the RPC."""
    TRANSPORT = "transport"
    """Delay the RPC by the time that TCP needs to retransmit."""


class Cause(StrEnum):
    """Cause of a failure or a wait."""

    LOSS = "loss"
    DISCONNECTED = "disconnected"
    PARTITIONED = "partitioned"
    FLAPPING = "flapping"
    HALF_OPEN = "half_open"
    TIMEOUT = "timeout"
    """Nothing passes until the connection is closed."""
    LIMIT_DATA = "limit_data"
    """The connection reached its limit of bytes and was closed."""
    LIMIT_TIME = "limit_time"
    """The connection reached its limit of time and was closed."""


@dataclass(slots=True)
class Deliver:
    """The piece arrives at `at`, in seconds on the caller's scale."""

    at: float


class Fail(NamedTuple):
    """The RPC fails, and its client learns of it at `at`; no more of its data passes."""

    at: float
    cause: Cause


class Blocked(NamedTuple):
    """Nothing passes: offer the same piece again at `until`, or when an event has changed the link.

    With the cause `half_open` it is permanent.
    """

    until: float
    cause: Cause


_NEVER: Final = -math.inf


class LinkRpc:
    """One RPC on a link, or (index below 0) the traffic of a connection outside RPCs."""

    __slots__ = ("arrived", "connection", "index", "lost_after", "lost_on", "messages", "moved", "quantile", "score")

    def __init__(self, index: int, connection: int, quantile: float, score: float) -> None:
        self.index = index
        self.connection = connection
        self.quantile = quantile
        self.score = score
        self.messages = 0
        self.lost_on: Direction | None = None
        self.lost_after: float  # these two are set with `lost_on`
        self.moved: int
        self.arrived = [_NEVER, _NEVER]  # up, down


RECENT_MESSAGES: Final = 16
"""Window of the mean delay: a few rounds of a node's requests for work, updates and heartbeats."""


class DirectionCounters:
    """Counters of one direction."""

    __slots__ = ("bytes", "delay_seconds", "messages", "recent_seconds")

    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0
        self.delay_seconds = 0.0
        """Sum over messages of the seconds from the offer of the first piece to its arrival."""
        self.recent_seconds = 0.0
        """Exponentially weighted mean of these seconds over about the last `RECENT_MESSAGES` messages."""

    def delayed(self, seconds: float) -> None:
        """Count a message and its delay."""
        self.messages = messages = self.messages + 1
        self.delay_seconds += seconds
        share = messages if messages < RECENT_MESSAGES else RECENT_MESSAGES
        self.recent_seconds += (seconds - self.recent_seconds) / share
