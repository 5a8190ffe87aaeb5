"""Congestion window of a TCP sender, in whole packets as Linux keeps it.

CUBIC with HyStart (RFC 9438; Ha & Rhee, "Taming the elephants", 2011), or Reno (RFC 5681). A window that is not used
is taken back (RFC 2861).
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
"""Linux evaluates the curve again when the window has changed, or after this time."""


class CongestionControl(StrEnum):
    """Rule by which the window grows and falls."""

    CUBIC = "cubic"
    RENO = "reno"


class Window:
    """Congestion window.

    Attributes:
        packets: how many may be in flight.
        threshold: window at which slow start ends.
    """

    __slots__ = (
        "_beta", "_credit", "_curve", "_filled_at", "_least_queued", "_most_used", "_per_packet", "_seen", "_updated",
        "packets", "threshold",
    )  # fmt: skip

    def __init__(self, control: CongestionControl) -> None:
        self._beta = _BETA[control]
        self._curve = CubicCurve() if control is CongestionControl.CUBIC else None
        self.packets = INITIAL_WINDOW
        self.threshold = _UNBOUNDED
        self._least_queued = math.inf  # least seconds that a packet took to pass the bottleneck
        self._filled_at = -math.inf  # when so many packets were last in flight
        self._most_used = 0  # most packets in flight since then
        self._credit = 0  # acknowledgements towards the next packet
        self._per_packet = self._seen = 0
        self._updated = -math.inf

    def acked(self, packets: int, flight: Flight, round_trip: float) -> None:
        """Grow by the first `packets` acknowledgements of a flight. A window that was not filled does not grow."""
        if flight.packets:
            self._least_queued = min(self._least_queued, flight.first_queued)
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
        if self._curve is not None:
            self._curve.restart(self.packets, self._beta)
        self.threshold = max(int(self.packets * self._beta), 2)
        self.packets = self.threshold
        self._credit = self._seen = 0

    def collapse(self) -> None:
        """Start from one packet after a retransmission timeout."""
        self.reduce()
        self.packets = 1

    def rest(self, idle_seconds: float, timeouts: int) -> None:
        """Halve for every retransmission timeout of idleness, down to the initial window.

        The curve continues where it was before the pause.
        """
        if self._curve is not None:
            self._curve.pause(idle_seconds)
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

    def _hystart_exit(self, flight: Flight, round_trip: float) -> int:
        """Return the number of acknowledgements after which a long train or a long queue ends slow start."""
        packets = flight.packets
        if self._curve is None or self.packets + packets < _HYSTART_LOW_WINDOW:
            return _UNBOUNDED
        exits = _UNBOUNDED
        spacing, longest = flight.spacing, (round_trip + _HYSTART_SLACK_SECONDS) / 2
        if 0 < spacing <= _HYSTART_SPACING_SECONDS and spacing * (packets - 1) > longest:
            exits = int(longest / spacing) + 1
        queued = flight.first_queued - self._least_queued
        if packets >= _HYSTART_SAMPLES and queued > min(max(round_trip / 8, 0.004), 0.016):
            exits = min(exits, _HYSTART_SAMPLES)
        if exits < packets:
            exits = max(exits, _HYSTART_LOW_WINDOW - self.packets)
            self.threshold = self.packets + exits
        return exits

    def _avoid(self, packets: int, now: float, round_trip: float) -> None:
        """Grow by congestion avoidance: one more packet for every so many acknowledgements."""
        curve = self._curve
        while packets > 0:
            if self.packets != self._seen or now - self._updated > _UPDATE_SECONDS:
                self._per_packet = (
                    curve.acks_per_packet(self.packets, now, round_trip) if curve is not None else self.packets
                )
                self._seen, self._updated = self.packets, now
            step = min(packets, max(1, self._per_packet - self._credit))
            packets -= step
            self._credit += step
            if curve is not None:
                curve.friendly_credit += step
            if self._credit >= self._per_packet:
                self._credit = 0
                self.packets += 1


class CubicCurve:
    """Growth of CUBIC's window since the last loss.

    Attributes:
        friendly_credit: acknowledgements towards the next packet of the window that Reno would have.
    """

    __slots__ = ("_begin", "_friendly", "_k", "_origin", "_peak", "friendly_credit")

    def __init__(self) -> None:
        self._begin: float | None = None
        self._peak = 0.0  # window at the last loss
        self._origin = self._k = 0.0
        self._friendly = self.friendly_credit = 0

    def restart(self, window: int, beta: float) -> None:
        """Begin again after a loss at this window."""
        # Fast convergence: a peak below the last one leaves room to a newcomer.
        self._peak = window * (1 + beta) / 2 if window < self._peak else float(window)
        self._begin = None

    def pause(self, seconds: float) -> None:
        """Continue later."""
        if self._begin is not None:
            self._begin += seconds

    def acks_per_packet(self, window: int, now: float, round_trip: float) -> int:
        """Return the number of acknowledgements for which the window grows by a packet."""
        if self._begin is None:
            self._begin = now - round_trip
            self._friendly, self.friendly_credit = window, 0
            self._origin = max(self._peak, float(window))
            self._k = math.cbrt((self._origin - window) / _CUBIC_SCALE)
        # Linux truncates the distance from the origin, so that small windows grow faster than the formula says.
        target = int(self._origin) + int(_CUBIC_SCALE * (now - self._begin + round_trip - self._k) ** 3)
        acks = window // (target - window) if target > window else 100 * window
        if not self._peak:
            acks = min(acks, 20)  # the first time, before any loss: 5 % in a round trip
        # Never slower than Reno with CUBIC's back-off would be.
        each = max(1, window * _FRIENDLY_EIGHTHS >> 3)
        self._friendly += self.friendly_credit // each
        self.friendly_credit %= each
        if self._friendly > window:
            acks = min(acks, window // (self._friendly - window))
        return max(acks, 2)
