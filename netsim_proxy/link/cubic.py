"""CUBIC with HyStart (RFC 9438; Ha & Rhee, "Taming the elephants", 2011), as in Linux."""

import math
from typing import Final

from hypergpu.netsim_proxy.link.flight import Flight
from hypergpu.netsim_proxy.link.window import UNBOUNDED, Window

_HYSTART_LOW_WINDOW: Final = 16
_HYSTART_SPACING_SECONDS: Final = 0.002
_HYSTART_SLACK_SECONDS: Final = 0.001
_HYSTART_SAMPLES: Final = 8
_CUBIC_SCALE: Final = 0.4
_FRIENDLY_EIGHTHS: Final = 15
"""Acknowledgements that Reno with CUBIC's back-off needs for a packet, in eighths of the window: 8 (1+β) / 3 (1-β)."""


class CubicWindow(Window):
    """Congestion window that grows along a curve since the last loss."""

    __slots__ = ("_curve", "_least_queued")

    beta = 717 / 1024

    def __init__(self) -> None:
        super().__init__()
        self._curve = CubicCurve()
        self._least_queued = math.inf  # least seconds that a packet took to pass the bottleneck

    def acked(self, packets: int, flight: Flight, round_trip: float) -> None:
        """Grow by the first `packets` acknowledgements of a flight. A window that was not filled does not grow."""
        if flight.packets:
            self._least_queued = min(self._least_queued, flight.first_queued)
        super().acked(packets, flight, round_trip)

    def reduce(self) -> None:
        """Reduce the window after a loss."""
        self._curve.restart(self.packets, self.beta)
        super().reduce()

    def rest(self, idle_seconds: float, timeouts: int) -> None:
        """Reduce the window after a pause. The curve continues where it was before."""
        self._curve.pause(idle_seconds)
        super().rest(idle_seconds, timeouts)

    def acks_per_packet(self, now: float, round_trip: float) -> int:
        """Return the number of acknowledgements for which the window grows by a packet."""
        acks, self.avoided = self._curve.acks_per_packet(self.packets, self.avoided, now, round_trip)
        return acks

    def slow_start_exit(self, flight: Flight, round_trip: float) -> int:
        """Return the number of acknowledgements after which a long train or a long queue ends slow start."""
        packets = flight.packets
        if self.packets + packets < _HYSTART_LOW_WINDOW:
            return UNBOUNDED
        exits = UNBOUNDED
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


class CubicCurve:
    """Growth of CUBIC's window since the last loss."""

    __slots__ = ("_begin", "_friendly", "_k", "_origin", "_peak")

    def __init__(self) -> None:
        self._begin: float | None = None
        self._peak = 0.0  # window at the last loss
        self._origin = self._k = 0.0
        self._friendly = 0  # window that Reno would have

    def restart(self, window: int, beta: float) -> None:
        """Begin again after a loss at this window."""
        # Fast convergence: a peak below the last one leaves room to a newcomer.
        self._peak = window * (1 + beta) / 2 if window < self._peak else float(window)
        self._begin = None

    def pause(self, seconds: float) -> None:
        """Continue later."""
        if self._begin is not None:
            self._begin += seconds

    def acks_per_packet(self, window: int, avoided: int, now: float, round_trip: float) -> tuple[int, int]:
        """Return the number of acknowledgements for which the window grows by a packet.

        `avoided` of them have come since the last call; those that let Reno's window not grow yet are returned as well.
        """
        if self._begin is None:
            self._begin = now - round_trip
            self._friendly, avoided = window, 0
            self._origin = max(self._peak, float(window))
            self._k = math.cbrt((self._origin - window) / _CUBIC_SCALE)
        # Linux truncates the distance from the origin, so that small windows grow faster than the formula says.
        target = int(self._origin) + int(_CUBIC_SCALE * (now - self._begin + round_trip - self._k) ** 3)
        acks = window // (target - window) if target > window else 100 * window
        if not self._peak:
            acks = min(acks, 20)  # the first time, before any loss: 5 % in a round trip
        # Never slower than Reno with CUBIC's back-off would be.
        each = max(1, window * _FRIENDLY_EIGHTHS >> 3)
        self._friendly += avoided // each
        if self._friendly > window:
            acks = min(acks, window // (self._friendly - window))
        return max(acks, 2), avoided % each
