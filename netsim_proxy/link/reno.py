"""Reno (RFC 5681)."""

from hypergpu.netsim_proxy.link.flight import Flight
from hypergpu.netsim_proxy.link.window import UNBOUNDED, Window


class RenoWindow(Window):
    """Congestion window that grows by a packet in a round trip, and halves on a loss."""

    __slots__ = ()

    beta = 0.5

    def acks_per_packet(self, now: float, round_trip: float) -> int:
        """Return the number of acknowledgements for which the window grows by a packet."""
        return self.packets

    def slow_start_exit(self, flight: Flight, round_trip: float) -> int:
        """Return the number of acknowledgements of a flight after which slow start ends."""
        return UNBOUNDED
