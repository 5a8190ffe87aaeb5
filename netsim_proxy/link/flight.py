"""A flight: the packets that TCP sends in one round trip, and when their acknowledgements are back."""

import math


class Flight:
    """Packets that were sent together, or a part of them."""

    __slots__ = (
        "ack_first",
        "ack_last",
        "before",
        "cut",
        "first_lost",
        "lost",
        "next_before",
        "next_packets",
        "packets",
        "repairs",
        "resent",
        "waited",
    )

    def __init__(self, packets: int = 0, ack_first: float = -math.inf, ack_last: float = -math.inf) -> None:
        self.packets = packets
        self.ack_first = ack_first
        self.ack_last = ack_last
        self.waited = 0.0
        """How long the first packet stood in the bottleneck's queue."""
        self.lost = 0
        self.first_lost = packets
        self.cut = False
        """A loss in it has reduced the window."""
        self.before = 0
        """Packets of this flight that were sent before a recovery began: their losses belong to it."""
        self.next_before = -1
        """`before` of the next flight, if a recovery began with a loss in this one; else -1."""
        self.next_packets = 0
        """Packets of the next flight, retransmissions included, after a loss in this one."""
        self.resent = 0
        """Lost packets that were sent again in the round trip after it."""
        self.repairs = False
        """It was sent during a recovery, in which windows do not grow."""

    @property
    def spacing(self) -> float:
        """Seconds between two acknowledgements."""
        return (self.ack_last - self.ack_first) / (self.packets - 1) if self.packets > 1 else 0.0

    def ack_of(self, packet: int) -> float:
        """When the acknowledgement of a packet is back."""
        return min(self.ack_first + packet * self.spacing, self.ack_last)
