"""The state of one direction of a link."""

import math

from hypergpu.netsim_proxy.link.bottleneck import Bottleneck
from hypergpu.netsim_proxy.link.conditions import Blockage
from hypergpu.netsim_proxy.link.outcomes import DirectionCounters
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.tcp import TcpFlow


class LinkLane(DirectionCounters):
    """One direction: its path, when its bandwidth is free, and its counters."""

    __slots__ = (
        "added_seconds", "blocked", "bottleneck", "busy_until", "carried", "dead_connections", "latency",
        "latency_factor", "limit_bytes", "number", "path", "seconds_per_byte",
    )  # fmt: skip

    def __init__(self, number: int, path: Path) -> None:
        super().__init__()
        self.number = number
        self.set_path(path)
        self.seconds_per_byte = 1.0 / path.bytes_per_second
        self.busy_until = -math.inf
        self.bottleneck = Bottleneck()
        self.latency_factor = 1.0
        self.added_seconds = 0.0
        self.blocked: Blockage | None = None
        self.limit_bytes = math.inf
        self.carried: dict[int, int] = {}
        """Bytes by connection, counted while a limit is active."""
        self.dead_connections: set[int] = set()

    @property
    def flows(self) -> dict[int, TcpFlow]:
        """TCP flows by connection."""
        return self.bottleneck.flows

    def set_path(self, path: Path) -> None:
        """Change the path."""
        self.path = path
        self.latency = path.latency.at
