"""Congestion window of a TCP sender, in whole packets as Linux keeps it.

The rules that CUBIC and Reno share: slow start, growth by counted acknowledgements, and a window that is taken back
where it is not used (RFC 2861).
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from hypergpu.netsim_proxy.link.congestion import INITIAL_WINDOW
from hypergpu.netsim_proxy.link.flight import Flight

UNBOUNDED: Final = 1 << 30
_UPDATE_SECONDS: Final = 1 / 32
"""Linux evaluates the growth again when the window has changed, or after this time."""


class Window(ABC):
    """Congestion window. An algorithm says how fast it grows, how much of it a loss leaves, and what a pause does.

    Attributes:
        packets: how many may be in flight.
        threshold: window at which slow start ends.
        avoided: acknowledgements since slow start that the algorithm has not counted yet.
    """

    __slots__ = (
        "_credit", "_filled_at", "_most_used", "_per_packet", "_seen", "_updated", "avoided", "packets", "threshold",
    )  # fmt: skip

    beta: ClassVar[float]
    """Share of the window that a loss leaves."""

    def __init__(self) -> None:
        self.packets = INITIAL_WINDOW
        self.threshold = UNBOUNDED
        self.avoided = 0
        self._filled_at = -math.inf  # when so many packets were last in flight
        self._most_used = 0  # most packets in flight since then
        self._credit = 0  # acknowledgements towards the next packet
        self._per_packet = self._seen = 0
        self._updated = -math.inf

    @abstractmethod
    def acks_per_packet(self, now: float, round_trip: float) -> int:
        """Return the number of acknowledgements for which the window grows by a packet."""

    @abstractmethod
    def slow_start_exit(self, flight: Flight, round_trip: float) -> int:
        """Return the number of acknowledgements of a flight after which slow start ends."""

    def acked(self, packets: int, flight: Flight, round_trip: float) -> None:
        """Grow by the first `packets` acknowledgements of a flight. A window that was not filled does not grow."""
        if self.packets < self.threshold:
            if 2 * flight.packets <= self.packets:
                return
            slow = min(packets, self.slow_start_exit(flight, round_trip), self.threshold - self.packets)
            self.packets += slow
            packets -= slow
        elif flight.packets < self.packets:
            return
        self._avoid(packets, flight.ack_of(packets), round_trip)

    def reduce(self) -> None:
        """Reduce the window after a loss."""
        self.threshold = max(int(self.packets * self.beta), 2)
        self.packets = self.threshold
        self._credit = self._seen = 0

    def collapse(self) -> None:
        """Start from one packet after a retransmission timeout."""
        self.reduce()
        self.packets = 1

    def rest(self, idle_seconds: float, timeouts: int) -> None:
        """Halve for every retransmission timeout of idleness, down to the initial window."""
        if timeouts:
            self.threshold = max(self.threshold, 3 * self.packets // 4)
            self.packets = max(min(self.packets, INITIAL_WINDOW), self.packets >> min(timeouts, 30))

    def fill(self, now: float) -> None:
        """Note that the window is full."""
        self._filled_at, self._most_used = now, 0

    def use_part(self, in_flight: int, now: float, timeout_seconds: float) -> None:
        """Note that fewer are in flight. After a retransmission timeout of that, give up half of the unused packets."""
        self._most_used = max(self._most_used, in_flight)
        if now - self._filled_at < timeout_seconds:
            return
        used = max(self._most_used, INITIAL_WINDOW)
        if used < self.packets:
            self.threshold = max(self.threshold, 3 * self.packets // 4)
            self.packets = (self.packets + used) >> 1
        self.fill(now)

    def _avoid(self, packets: int, now: float, round_trip: float) -> None:
        """Grow by congestion avoidance: one more packet for every so many acknowledgements."""
        while packets > 0:
            if self.packets != self._seen or now - self._updated > _UPDATE_SECONDS:
                self._per_packet = self.acks_per_packet(now, round_trip)
                self._seen, self._updated = self.packets, now
            step = min(packets, max(1, self._per_packet - self._credit))
            packets -= step
            self._credit += step
            self.avoided += step
            if self._credit >= self._per_packet:
                self._credit = 0
                self.packets += 1
