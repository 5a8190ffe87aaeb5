"""A flight of packets in the model of TCP: how it is sent, and what becomes of it."""

from typing import NamedTuple


class Plan(NamedTuple):
    """When a flight is sent: a burst at once, and the rest as acknowledgements come from `start` for `span` seconds."""

    burst: int
    clocked: int
    start: float
    span: float
    repair: bool = False
    before: int = 0
    """New packets that a repairing flight sends before it knows of the loss."""


class Flight:
    """Packets on their way, and when the first and the last acknowledgement will be back."""

    __slots__ = ("ack_first", "ack_last", "first_lost", "lost", "packets", "repair", "waited")

    def __init__(self, packets: int, ack_first: float, ack_last: float, waited: float) -> None:
        self.packets = packets
        self.ack_first = ack_first
        self.ack_last = ack_last
        self.waited = waited
        self.lost = 0
        self.first_lost = packets
        self.repair = False

    @property
    def spacing(self) -> float:
        """Seconds between two acknowledgements."""
        return (self.ack_last - self.ack_first) / (self.packets - 1) if self.packets > 1 else 0.0

    def ack_of(self, packet: int) -> float:
        """When the acknowledgement of a packet is back."""
        if self.packets < 2:
            return self.ack_last
        return self.ack_first + (self.ack_last - self.ack_first) * min(packet / (self.packets - 1), 1.0)
