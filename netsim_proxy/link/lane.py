"""The state of one direction of a link."""

import math

from hypergpu.netsim_proxy.link.access_lane import AccessLane, AccessShares
from hypergpu.netsim_proxy.link.bottleneck import Bottleneck
from hypergpu.netsim_proxy.link.conditions import Blockage
from hypergpu.netsim_proxy.link.outcomes import DirectionCounters
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.tcp import TcpFlow


class DataLimit:
    """Limit of the bytes that each connection may carry.

    Attributes:
        nbytes: the limit; infinite = none.
    """

    __slots__ = ("_carried", "nbytes")

    def __init__(self) -> None:
        self.nbytes = math.inf
        self._carried: dict[int, int] = {}  # by connection, counted while there is a limit

    def set(self, nbytes: float) -> None:
        """Change the limit; after a time without one it counts from its own start."""
        if nbytes == math.inf:
            self._carried.clear()
        self.nbytes = nbytes

    def left(self, connection: int) -> float:
        """Return the bytes that a connection may still carry."""
        return self.nbytes - self._carried.get(connection, 0)

    def carry(self, connection: int, nbytes: int) -> None:
        """Count bytes of a connection."""
        self._carried[connection] = self._carried.get(connection, 0) + nbytes

    def forget(self, connection: int) -> None:
        """Drop a closed connection."""
        self._carried.pop(connection, None)


class LinkLane(DirectionCounters):
    """One direction: its path, when its bandwidth is free, and its counters.

    Attributes:
        access: its connections on the upstream's access link; None = that is unlimited.
    """

    __slots__ = (
        "access", "added_seconds", "blocked", "bottleneck", "busy_until", "dead_connections", "latency",
        "latency_factor", "limit", "number", "path", "seconds_per_byte",
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
        self.limit = DataLimit()
        self.access: AccessShares | None = None
        self.dead_connections: set[int] = set()

    @property
    def flows(self) -> dict[int, TcpFlow]:
        """TCP flows by connection."""
        return self.bottleneck.flows

    def set_path(self, path: Path) -> None:
        """Change the path."""
        self.path = path
        self.latency = path.latency.at

    def share(self, access: AccessLane) -> None:
        """Cross this lane of the access link from now on, if it has a bandwidth."""
        if not access.is_limited:
            self.access = None
        elif self.access is None or self.access.lane is not access:
            self.access = AccessShares(access)

    def forget(self, connection: int) -> None:
        """Drop a closed connection."""
        self.dead_connections.discard(connection)
        self.limit.forget(connection)
        self.bottleneck.flows.pop(connection, None)
        if self.access is not None:
            self.access.forget(connection)
