"""Congestion control of a TCP sender: its names, and what every algorithm offers to the recovery of losses."""

from enum import StrEnum
from typing import Final, Protocol

INITIAL_WINDOW: Final = 10
"""Packets that a new connection may send at once (RFC 6928)."""


class CongestionControl(StrEnum):
    """Algorithm that decides how much a sender has in flight, and how fast it sends."""

    CUBIC = "cubic"
    """Linux's default: the window grows along a cubic curve since the last loss (RFC 9438)."""
    RENO = "reno"
    """The window grows by a packet in a round trip, and halves on a loss (RFC 5681)."""
    BBR = "bbr"
    """The sender is paced by the measured rate of the path; a loss reduces nothing by itself (BBR version 1)."""


class CongestionWindow(Protocol):
    """Window of an algorithm, as the recovery of losses sees it."""

    packets: int
    """Packets that may be in flight."""

    def collapse(self) -> None:
        """Start from one packet after a retransmission timeout."""
