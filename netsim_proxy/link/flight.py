"""Flight: the packets that TCP sends in one round trip, and when their acknowledgements return."""

import math


class Flight:
    """Packets that were sent together.

    Attributes:
        packets: how many.
        ack_first, ack_last: when the first and the last acknowledgement return.
        sent_last: when the last packet was sent.
        first_queued, last_queued: seconds that the first and the last packet took to pass the bottleneck.
        lost: packets that were lost.
        first_lost: number of the first of them.
    """

    __slots__ = (
        "ack_first", "ack_last", "first_lost", "first_queued", "last_queued", "lost", "packets", "sent_last",
    )  # fmt: skip

    def __init__(self, packets: int = 0, ack_first: float = -math.inf, ack_last: float = -math.inf) -> None:
        self.packets = packets
        self.ack_first = ack_first
        self.ack_last = ack_last
        self.sent_last = -math.inf
        self.first_queued = self.last_queued = 0.0
        self.lost = 0
        self.first_lost = packets

    @property
    def spacing(self) -> float:
        """Seconds between two acknowledgements."""
        return (self.ack_last - self.ack_first) / (self.packets - 1) if self.packets > 1 else 0.0

    def ack_of(self, packet: int) -> float:
        """Return when the acknowledgement of a packet returns."""
        return min(self.ack_first + packet * self.spacing, self.ack_last)

    def append(self, part: "Flight") -> None:
        """Add packets that were sent in the same round trip."""
        if not self.packets:
            self.ack_first, self.first_queued = part.ack_first, part.first_queued
        self.packets += part.packets
        self.ack_last, self.sent_last, self.last_queued = part.ack_last, part.sent_last, part.last_queued


class RoundTripFlight(Flight):
    """All packets of one round trip, and the recoveries that they belong to.

    Attributes:
        reduced: whether a loss in it has reduced the window.
        repairs: whether it was sent during a recovery, in which windows do not grow.
        before: packets of this flight that were sent before a recovery began: their losses belong to it.
        next_before: `before` of the next flight, if a recovery began with a loss in this one; else -1.
        next_packets: packets of the next flight, retransmissions included, after a loss in this one.
        resent: lost packets that were sent again in the round trip after it.
    """

    __slots__ = ("before", "next_before", "next_packets", "reduced", "repairs", "resent")

    def __init__(self, packets: int = 0, ack_first: float = -math.inf, ack_last: float = -math.inf) -> None:
        super().__init__(packets, ack_first, ack_last)
        self.reduced = False
        self.repairs = False
        self.before = 0
        self.next_before = -1
        self.next_packets = 0
        self.resent = 0

    @property
    def grows_window(self) -> bool:
        """True if its acknowledgements let the window grow."""
        return not self.repairs and not self.reduced
