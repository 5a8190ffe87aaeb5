"""Congestion window of a TCP sender, in whole packets as Linux keeps it.

CUBIC with HyStart (RFC 9438; Ha & Rhee, "Taming the elephants", 2011), or Reno (RFC 5681).
"""

import math
from enum import StrEnum
from typing import Final

from hypergpu.netsim_proxy.link.flight import Flight

INITIAL_WINDOW: Final = 10
_UNBOUNDED: Final = 1 << 30
_HYSTART_LOW_WINDOW: Final = 16
_HYSTART_SPACING_SECONDS: Final = 0.002
_HYSTART_SLACK_SECONDS: Final = 0.001
_HYSTART_SAMPLES: Final = 8
_CUBIC_SCALE: Final = 0.4
_BETA: Final = {"cubic": 717 / 1024, "reno": 0.5}
_FRIENDLY_EIGHTHS: Final = 15
"""Acknowledgements that Reno with CUBIC's back-off needs for a packet, in eighths of the window: 8 (1+β) / 3 (1-β)."""
_UPDATE_SECONDS: Final = 1 / 32
"""Linux works the curve out anew when the window has changed, or after that time."""


class CongestionControl(StrEnum):
    """How the window grows and falls."""

    CUBIC = "cubic"
    RENO = "reno"


class Window:
    """How many packets may be in flight. Read `packets`."""

    __slots__ = (
        "_beta", "_credit", "_cubic", "_epoch", "_friendly", "_friendly_credit", "_k", "_origin", "_peak",
        "_per_packet", "_seen", "_updated", "packets", "threshold",
    )  # fmt: skip

    def __init__(self, control: CongestionControl) -> None:
        self._cubic = control is CongestionControl.CUBIC
        self._beta = _BETA[control]
        self.packets = INITIAL_WINDOW
        self.threshold = _UNBOUNDED
        self._peak = 0.0  # where the last loss was
        self._epoch: float | None = None  # since when the curve is followed
        self._origin = self._k = 0.0
        self._friendly = self._friendly_credit = 0  # the window that Reno would have
        self._credit = 0  # acknowledgements towards the next packet
        self._per_packet = self._seen = 0
        self._updated = -math.inf

    def acked(self, packets: int, flight: Flight, round_trip: float) -> None:
        """Grow by the first `packets` acknowledgements of a flight. A window that was not filled does not grow."""
        if self.packets < self.threshold:
            if 2 * flight.packets <= self.packets:
                return
            slow = min(packets, self._hystart_exit(flight, round_trip), self.threshold - self.packets)
            self.packets += slow
            packets -= slow
        elif flight.packets < self.packets:
            return
        self._avoid(packets, flight.ack_of(packets), round_trip)

    def reduce(self) -> None:
        """Reduce the window after a loss."""
        window = self.packets
        # Fast convergence: a peak below the last one leaves room to a newcomer.
        self._peak = window * (1 + self._beta) / 2 if window < self._peak else float(window)
        self._epoch = None
        self.threshold = max(int(window * self._beta), 2)
        self.packets = self.threshold
        self._credit = self._seen = 0

    def collapse(self) -> None:
        """Start from one packet after a retransmission timeout."""
        self.reduce()
        self.packets = 1

    def rest(self, timeouts: int) -> None:
        """Halve for every retransmission timeout of idleness, down to the initial window (RFC 2861)."""
        self.threshold = max(self.threshold, 3 * self.packets // 4)
        self.packets = max(min(self.packets, INITIAL_WINDOW), self.packets >> min(timeouts, 30))
        self._epoch = None

    def _hystart_exit(self, flight: Flight, round_trip: float) -> int:
        """After how many of its acknowledgements slow start ends: with a train of them, or a delay, too long."""
        packets = flight.packets
        if not self._cubic or self.packets + packets < _HYSTART_LOW_WINDOW:
            return _UNBOUNDED
        exits = _UNBOUNDED
        spacing, longest = flight.spacing, (round_trip + _HYSTART_SLACK_SECONDS) / 2
        if 0 < spacing <= _HYSTART_SPACING_SECONDS and spacing * (packets - 1) > longest:
            exits = int(longest / spacing) + 1
        if packets >= _HYSTART_SAMPLES and flight.waited > min(max(round_trip / 8, 0.004), 0.016):
            exits = min(exits, _HYSTART_SAMPLES)
        if exits < packets:
            exits = max(exits, _HYSTART_LOW_WINDOW - self.packets)
            self.threshold = self.packets + exits
        return exits

    def _avoid(self, packets: int, now: float, round_trip: float) -> None:
        """Congestion avoidance: one more packet for every so many acknowledgements."""
        while packets > 0:
            if self.packets != self._seen or now - self._updated > _UPDATE_SECONDS:
                self._per_packet = self._acks_per_packet(now, round_trip) if self._cubic else self.packets
                self._seen, self._updated = self.packets, now
            step = min(packets, max(1, self._per_packet - self._credit))
            packets -= step
            self._credit += step
            self._friendly_credit += step
            if self._credit >= self._per_packet:
                self._credit = 0
                self.packets += 1

    def _acks_per_packet(self, now: float, round_trip: float) -> int:
        window = self.packets
        if self._epoch is None:
            self._epoch = now - round_trip
            self._friendly, self._friendly_credit = window, 0
            self._origin = max(self._peak, float(window))
            self._k = math.cbrt((self._origin - window) / _CUBIC_SCALE)
        # Linux truncates the distance from the origin, so that small windows grow faster than the formula says.
        target = int(self._origin) + int(_CUBIC_SCALE * (now - self._epoch + round_trip - self._k) ** 3)
        acks = window // (target - window) if target > window else 100 * window
        if not self._peak:
            acks = min(acks, 20)  # the first time, before any loss: 5 % in a round trip
        # Never slower than Reno with CUBIC's back-off would be.
        each = max(1, window * _FRIENDLY_EIGHTHS >> 3)
        self._friendly += self._friendly_credit // each
        self._friendly_credit %= each
        if self._friendly > window:
            acks = min(acks, window // (self._friendly - window))
        return max(acks, 2)
