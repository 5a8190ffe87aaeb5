"""Acknowledgements that a paced sender expects: how many packets are delivered by a time, and how many in flight."""

import math
from bisect import bisect_left
from typing import Final, NamedTuple

_TOLERANCE: Final = 1e-9
"""Error of sums of shares of packets."""
_CLOCK_SECONDS: Final = 1e-9
"""Least time by which a wait moves on."""


class _Arrivals(NamedTuple):
    """Packets that leave the flight evenly from `first` to `last`: acknowledged, or noticed as lost."""

    first: float
    last: float
    packets: int
    are_lost: bool

    def by(self, at: float) -> float:
        """Return how many have left by a time, with shares between the first and the last."""
        if at >= self.last:
            return self.packets
        if at < self.first:
            return 0.0
        return 1.0 + (self.packets - 1) * (at - self.first) / (self.last - self.first)

    @property
    def pace(self) -> float:
        """Packets that leave in a second, between the first and the last."""
        return (self.packets - 1) / (self.last - self.first) if self.last > self.first else 0.0


class Deliveries:
    """Acknowledgements of one connection.

    Attributes:
        sent: packets sent so far, those sent again counted again.
    """

    __slots__ = ("_acked", "_acked_at", "_coming", "_lost", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self._acked = self._lost = 0  # packets that have left before the time that `forget` was given last
        self._acked_at = -math.inf  # time of the last acknowledgement until then
        self._coming: list[_Arrivals] = []

    @property
    def expected(self) -> int:
        """Packets that are delivered in the end, of all that were sent so far."""
        return self.sent - self._lost - sum([each.packets for each in self._coming if each.are_lost])

    def send(self, packets: int) -> None:
        """Count packets that are sent."""
        self.sent += packets

    def acknowledge(self, first: float, last: float, packets: int) -> None:
        """Expect acknowledgements."""
        self._coming.append(_Arrivals(first, last, packets, are_lost=False))

    def lose(self, at: float, packets: int) -> None:
        """Count packets as lost from a time on."""
        self._coming.append(_Arrivals(at, at, packets, are_lost=True))

    def settle(self) -> None:
        """Count all packets as delivered."""
        self._coming.clear()
        self._acked = self.sent - self._lost

    def acked(self, at: float) -> float:
        """Return how many packets are delivered by a time, which is not before that of the last `forget`."""
        return self._acked + sum([each.by(at) for each in self._coming if not each.are_lost])

    def in_flight(self, at: float) -> float:
        """Return how many packets are in flight at a time."""
        return self.sent - self._acked - self._lost - sum([each.by(at) for each in self._coming])

    def last_ack(self, at: float) -> float:
        """Return the time of the last acknowledgement up to a time."""
        return max(
            (min(each.last, at) for each in self._coming if each.first <= at and not each.are_lost),
            default=self._acked_at,
        )

    def forget(self, before: float) -> None:
        """Forget the times of acknowledgements before a time."""
        kept = []
        for each in self._coming:
            if each.last > before:
                kept.append(each)
            elif each.are_lost:
                self._lost += each.packets
            else:
                self._acked += each.packets
                self._acked_at = max(self._acked_at, each.last)
        self._coming = kept

    def frees(self, packets: float, since: float) -> float:
        """Return when so many packets more than by `since` have left; infinite if fewer are in flight."""
        target = self.in_flight(since) - packets
        times = sorted({at for each in self._coming for at in (each.first, each.last) if at > since})
        index = bisect_left(times, -target - _TOLERANCE, key=lambda at: -self.in_flight(at))
        if index == len(times):
            return math.inf
        before, after = times[index - 1] if index else since, times[index]
        pace = sum([each.pace for each in self._coming if each.first <= before and each.last >= after])
        if pace:
            after = min(after, before + (self.in_flight(before) - target) / pace)
        return max(after, since + _CLOCK_SECONDS)
