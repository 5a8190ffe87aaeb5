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
        last_lost: number of the last of them after which a packet arrived.
        trailing_lost: how many of them were sent after the last packet that arrived.
    """

    __slots__ = (
        "ack_first", "ack_last", "first_lost", "first_queued", "last_lost", "last_queued", "lost", "packets",
        "sent_last", "trailing_lost",
    )  # fmt: skip

    def __init__(self, packets: int = 0, ack_first: float = -math.inf, ack_last: float = -math.inf) -> None:
        self.packets = packets
        self.ack_first = ack_first
        self.ack_last = ack_last
        self.sent_last = -math.inf
        self.first_queued = self.last_queued = 0.0
        self.lost = self.trailing_lost = 0
        self.first_lost = packets
        self.last_lost = 0

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
        resent_at: when one of them was last sent again.
        allowed: window until the acknowledgement of the last packet sent again returns; 0: there is none.
        freed: packets whose delivery lets others be sent before that, evenly from `freed_since` to `freed_until`.
    """

    __slots__ = (
        "allowed", "before", "freed", "freed_since", "freed_until", "next_before", "next_packets", "reduced", "repairs",
        "resent", "resent_at",
    )  # fmt: skip

    def __init__(self, packets: int = 0, ack_first: float = -math.inf, ack_last: float = -math.inf) -> None:
        super().__init__(packets, ack_first, ack_last)
        self.reduced = False
        self.repairs = False
        self.before = 0
        self.next_before = -1
        self.next_packets = 0
        self.resent = 0
        self.resent_at = -math.inf
        self.allow(0, 0, 0.0, 0.0)

    def allow(self, window: int, freed: int, since: float, until: float) -> None:
        """Allow packets before the acknowledgement of the last one sent again."""
        self.allowed, self.freed, self.freed_since, self.freed_until = window, freed, since, until

    def freed_at(self, now: float) -> int:
        """Return how many packets deliveries let be sent by a time."""
        share = 1.0
        if now < self.freed_until:
            share = max(0.0, (now - self.freed_since) / (self.freed_until - self.freed_since))
        return min(int(self.freed * share), self.allowed)

    @property
    def grows_window(self) -> bool:
        """True if its acknowledgements let the window grow."""
        return not self.repairs and not self.reduced
