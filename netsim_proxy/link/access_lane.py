"""Access link of the upstream: the bandwidth that the connections of all links share, one lane for each direction.

A lane serves all connections that have data in it at equal rates, and what one of them cannot use is left to the others
(max-min fairness). That is generalised processor sharing (Parekh and Gallager, 1993): `_served` is its virtual time, in
bytes that each busy connection has got, and a connection is busy until that reaches the `finish` of its data. One heap
of these holds all connections, so that a piece costs the logarithm of their number.

What it models: a connection's rate is the least of what its window, its own line and its share of this lane allow, at
every moment. While the lane holds some connection back, TCP keeps its queue full, and everything that crosses the lane
waits for that queue, small calls included; more than the queue holds waits at its sender.

What it does not: packets that the queue drops (those that a link loses and sends again count once), and shares that
differ by round trip or by luck, as those of real TCP do: there the first of many transfers is complete sooner, and the
last one at the same time (`benchmarks/access_link.py`). A lane is entered when a piece is offered, beside its own line
and not behind it. The time at which a piece has passed is told at once, for the connections that are busy then: later
ones delay the pieces after it.
"""

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.link.profiles import MBIT_BYTES, check_bandwidth, default_queue_bytes

_USEFUL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class UpstreamBandwidth:
    """Bandwidth of the upstream's access link."""

    down_mbit: float = math.inf
    """Megabits (10⁶) per second towards all nodes together: what the upstream sends. Infinite = no limit."""
    up_mbit: float = math.inf
    """The same from all nodes together: what the upstream receives."""
    queue_bytes: int = 0
    """Queue of each direction in bytes; 0 = 100 ms worth of it, between 64 KiB and 4 MiB."""

    def __post_init__(self) -> None:
        for mbit in (self.down_mbit, self.up_mbit):
            check_bandwidth(mbit)
        if self.queue_bytes < 0:
            raise ValueError(f"a queue has 0 bytes or more, not {self.queue_bytes}")

    def mbit(self, direction: Direction) -> float:
        """Return the bandwidth of a direction."""
        return self.up_mbit if direction is Direction.UP else self.down_mbit


NO_LIMIT: Final = UpstreamBandwidth()


class Share:
    """One connection on a lane.

    Attributes:
        finish: virtual time at which its data has passed.
        is_busy: whether it has data in the lane.
        is_held_back: whether the lane, and nothing else, limits it; then it sends on as fast as the lane lets it.
        leaves_at: when its last piece has passed, as it was told.
    """

    __slots__ = ("finish", "is_busy", "is_held_back", "leaves_at")

    def __init__(self) -> None:
        self.finish = 0.0
        self.is_busy = self.is_held_back = False
        self.leaves_at = -math.inf


class AccessLane:
    """One direction of the access link.

    Attributes:
        is_limited: whether it has a bandwidth.
        queue_seconds: time for which a full queue delays what comes after it.
        bytes: bytes offered so far.
    """

    __slots__ = (
        "_finishes", "_free", "_free_finishes", "_held_back", "_held_back_finishes", "_now", "_order",
        "_seconds_per_byte", "_served", "bytes", "is_limited", "queue_seconds",
    )  # fmt: skip

    def __init__(self, mbit: float = math.inf, queue_bytes: int = 0) -> None:
        self._now = -math.inf
        self._finishes: list[tuple[float, int, Share]] = []
        self._order = self.bytes = 0
        self._served = 0.0
        self._empty()
        self.set_bandwidth(mbit, queue_bytes, -math.inf)

    def set_bandwidth(self, mbit: float, queue_bytes: int, now: float) -> None:
        """Change the bandwidth at once, for data in the lane too; 0 bytes are the default queue."""
        self.advance(now)
        rate = mbit * MBIT_BYTES
        self.is_limited = mbit < math.inf
        self._seconds_per_byte = 1 / rate
        self.queue_seconds = (queue_bytes or default_queue_bytes(rate)) / rate if self.is_limited else 0.0
        if not self.is_limited:
            self._empty()

    def cross(self, now: float, share: Share, nbytes: float, line_seconds: float) -> float:
        """Send a piece of a connection, and return the seconds until it has passed.

        Without the lane it would have left the connection's own line after `line_seconds`. A piece that is offered
        late, with a time before that of another one, meets the lane as it is now.
        """
        self.advance(now)
        self.bytes += int(nbytes)
        if not self.is_limited:  # changed a moment ago, and the link has not heard of it
            return 0.0
        if share.is_busy:
            self._count(share, -1)
            share.finish += nbytes
        else:
            share.finish = self._served + nbytes
            self._push(share)
        # Those that are held back send on meanwhile; the others have only what is in the lane.
        own = share.finish - self._served
        ahead = own * (1 + self._held_back) + min(own * self._free, self._free_finishes - self._free * self._served)
        share.leaves_at = max(share.leaves_at, self._now + ahead * self._seconds_per_byte)
        seconds = share.leaves_at - self._now
        share.is_held_back = seconds > line_seconds
        share.is_busy = True
        self._count(share, 1)
        return seconds

    def forget(self, share: Share) -> None:
        """Drop a connection that is closed, and its data."""
        if share.is_busy:
            self._end(share)

    def wait_seconds(self, now: float) -> float:
        """Return for how long the queue delays what comes now: it is full while a connection is held back."""
        self.advance(now)
        return min(self.waiting_bytes * self._seconds_per_byte, self.queue_seconds) if self._held_back else 0.0

    @property
    def waiting_bytes(self) -> float:
        """Bytes in the queue, and at the senders that wait for it; 0 if no connection is held back."""
        return self._held_back_finishes - self._held_back * self._served

    @property
    def useful_bytes(self) -> float:
        """Bytes of one connection that are worth offering at a time: what its share carries in 0.1 s."""
        if not self.is_limited:
            return math.inf
        return _USEFUL_SECONDS / (self._seconds_per_byte * max(1, self._free + self._held_back))

    def advance(self, now: float) -> None:
        """Let time pass; it never goes back."""
        if now <= self._now:
            return
        finishes, per_byte, at = self._finishes, self._seconds_per_byte, self._now
        while finishes:
            finish, _, share = finishes[0]
            if share.is_busy:
                done_at = at + (finish - self._served) * (self._free + self._held_back) * per_byte
                if done_at > now:
                    self._served += (now - at) / ((self._free + self._held_back) * per_byte)
                    break
                at, self._served = done_at, finish
            heappop(finishes)
            if share.is_busy and share.finish > finish:
                self._push(share)  # it has sent more
            elif share.is_busy:
                self._end(share)
        self._now = now

    def _push(self, share: Share) -> None:
        self._order += 1
        heappush(self._finishes, (share.finish, self._order, share))

    def _count(self, share: Share, sign: int) -> None:
        """Count a busy connection (1), or no longer (-1)."""
        if share.is_held_back:
            self._held_back += sign
            self._held_back_finishes += sign * share.finish
        else:
            self._free += sign
            self._free_finishes += sign * share.finish

    def _end(self, share: Share) -> None:
        self._count(share, -1)
        share.is_busy = share.is_held_back = False
        if not self._free + self._held_back:
            self._empty()

    def _empty(self) -> None:
        """Begin anew without data, so that rounding errors do not add up."""
        for _, _, share in self._finishes:
            share.is_busy = share.is_held_back = False
        self._finishes.clear()
        self._free = self._held_back = 0
        self._served = self._free_finishes = self._held_back_finishes = 0.0


class AccessShares:
    """Connections of one link on a lane.

    Attributes:
        lane: the lane.
    """

    __slots__ = ("_shares", "lane")

    def __init__(self, lane: AccessLane) -> None:
        self.lane = lane
        self._shares: dict[int, Share] = {}

    def cross(self, now: float, connection: int, nbytes: float, line_seconds: float) -> float:
        """Send a piece of a connection, as `AccessLane.cross`."""
        share = self._shares.get(connection)
        if share is None:
            share = self._shares[connection] = Share()
        return self.lane.cross(now, share, nbytes, line_seconds)

    def room_at(self, connection: int) -> float:
        """Return when what has not passed of a connection fits into the queue."""
        share = self._shares.get(connection)
        return share.leaves_at - self.lane.queue_seconds if share is not None else -math.inf

    def forget(self, connection: int) -> None:
        """Drop a closed connection."""
        share = self._shares.pop(connection, None)
        if share is not None:
            self.lane.forget(share)


class AccessLink:
    """Access link of one upstream, which all of its links share.

    Attributes:
        up, down: its lanes, from the nodes and to the nodes.
        bandwidth: its current bandwidth.
    """

    def __init__(self, bandwidth: UpstreamBandwidth = NO_LIMIT) -> None:
        self.up, self.down = AccessLane(), AccessLane()
        self.change(bandwidth, -math.inf)

    def change(self, bandwidth: UpstreamBandwidth, now: float) -> None:
        """Change the bandwidth at once."""
        self.bandwidth = bandwidth
        self.up.set_bandwidth(bandwidth.up_mbit, bandwidth.queue_bytes, now)
        self.down.set_bandwidth(bandwidth.down_mbit, bandwidth.queue_bytes, now)

    def lane(self, direction: Direction) -> AccessLane:
        """Return the lane of a direction."""
        return self.up if direction is Direction.UP else self.down
