"""Losses of RPCs and packets: keyed, independent or in bursts."""

import math

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.profiles import Loss

_MOST_PACKET_LOSS = 0.99
"""Largest loss rate; on a path that loses everything, TCP would never finish."""


class LossChain:
    """Losses of RPCs, in order of their index."""

    __slots__ = ("_burst_end", "_draws", "_entry", "_independent", "_lost")

    def __init__(self, loss: Loss, draws: KeyedRandom) -> None:
        self._entry = loss.entry
        self._burst_end = 1.0 / loss.burst
        self._independent = loss.burst == 1 or loss.mean == 1
        self._draws = draws
        # The chain starts in its stationary distribution.
        self._lost = not self._independent and draws.uniform(0) < loss.mean

    def lost(self, index: int) -> bool:
        """Return whether RPC `index` is lost. Each call must pass the next index."""
        entry = self._entry
        if self._independent:
            return entry > 0 and self._draws.uniform(index + 1) < entry
        u = self._draws.uniform(index + 1)
        self._lost = u >= self._burst_end if self._lost else u < entry
        return self._lost


class PacketLoss:
    """Losses of packets. It draws the gap to the next loss, so that the cost is one draw per loss.

    Attributes:
        trailing: packets lost after the last one that passed, of those that were sent last.
        last: number of the last packet lost before one that passed, of those that were sent last.
    """

    __slots__ = ("_burst_end", "_count", "_draws", "_entry", "_gap", "_run", "_spared", "last", "trailing")

    def __init__(self, loss: Loss, draws: KeyedRandom) -> None:
        self._entry = min(loss.entry, _MOST_PACKET_LOSS)
        self._burst_end = 1.0 if loss.mean == 1 else 1.0 / loss.burst
        self._spared = int(self._burst_end < 1)  # a burst ends with a packet that passes
        self._draws = draws
        self._count = self.trailing = self.last = 0
        self._gap = self._geometric(self._entry)  # packets that still pass
        self._run = self._geometric(self._burst_end) + 1  # packets that are lost after them

    def first_lost(self, packets: int) -> int:
        """Return how many of the next `packets` pass before the first loss, without consuming them."""
        return packets if self._gap >= packets else self._gap

    def take(self, packets: int) -> int:
        """Send `packets` and return how many of them are lost."""
        lost = trailing = 0
        count = packets
        while packets > 0:
            if trailing and self._gap:
                self.last, trailing = count - packets - 1, 0
            if self._gap >= packets:
                self._gap -= packets
                break
            packets -= self._gap
            self._gap = 0
            now = min(packets, self._run)
            lost += now
            trailing += now
            packets -= now
            self._run -= now
            if self._run == 0:
                self._gap = self._spared + self._geometric(self._entry)
                self._run = self._geometric(self._burst_end) + 1
        self.trailing = trailing
        return lost

    def _geometric(self, p: float) -> int:
        if p >= 1:
            return 0
        if p <= 0:
            return 1 << 62
        draw = self._draws.uniform(self._count)
        self._count += 1
        return min(int(math.log1p(-draw) / math.log1p(-p)), 1 << 62)
