"""Order of frames in one direction of a connection, in which each stream has its own delay.

Streams may overtake one another. Some frames of the connection may not overtake, or not be overtaken:

| frame                                              | waits for earlier frames | blocks later frames |
|----------------------------------------------------|--------------------------|---------------------|
| acknowledgement of SETTINGS that only raise limits | no                       | yes                 |
| acknowledgement of SETTINGS that lower a limit     | yes                      | yes                 |
| SETTINGS                                           | no                       | yes                 |
| GOAWAY, the answer to a draining server's PING     | yes                      | no                  |

A frame that blocks and does not wait travels with the first later frame that arrives, so it delays nothing.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from hypergpu.netsim_proxy.relay.http2 import ENHANCE_YOUR_CALM, Http2Error

MAX_BARRIERS: Final = 256
"""A peer sends a few SETTINGS in its life, and each frame is compared with those that are on their way."""


class Barrier:
    """A frame of the connection with a place in the order."""

    __slots__ = ("blocks", "is_due", "number", "send", "waits")

    def __init__(self, number: int, send: Callable[[float], None], waits: bool, blocks: bool) -> None:
        self.number, self.send, self.waits, self.blocks = number, send, waits, blocks
        self.is_due = False


class DeliveryOrder:
    """Order of deliveries: frames on their way, and barriers between them.

    It reads no clock: the caller knows what is due, and `now` only passes through to the calls that write.

    Attributes:
        barriers: barriers that have not been sent. Only this class changes the list.
    """

    __slots__ = ("_behind", "_number", "_on_the_way", "barriers")

    def __init__(self) -> None:
        self._number = 0  # barriers so far
        self._on_the_way: dict[int, int] = {}  # frames that have not arrived, by the barriers read before them
        self.barriers: list[Barrier] = []
        self._behind: deque[tuple[int, Callable[[float], None]]] = deque()  # due, but blocked

    @property
    def is_empty(self) -> bool:
        """True if no frame is on its way."""
        return not self._on_the_way and not self.barriers

    def enter(self) -> int:
        """Register frames that were read now, and return their ticket."""
        number = self._number
        self._on_the_way[number] = self._on_the_way.get(number, 0) + 1
        return number

    def leave(self, now: float, ticket: int) -> None:
        """Forget frames that have arrived or were dropped."""
        self._count_down(ticket)
        if self.barriers:
            self._release(now)

    def arrive(self, now: float, ticket: int, deliver: Callable[[float], None]) -> None:
        """Deliver frames that are due, behind the barriers that they may not overtake."""
        if self.barriers and not self._clear_way(now, ticket):
            self._behind.append((ticket, deliver))
            return
        deliver(now)
        self.leave(now, ticket)

    def add(self, send: Callable[[float], None], *, waits: bool, blocks: bool) -> Barrier:
        """Register a barrier that was read now; `send` writes it.

        Raises:
            Http2Error: `MAX_BARRIERS` are on their way.
        """
        if len(self.barriers) >= MAX_BARRIERS:
            raise Http2Error(f"{MAX_BARRIERS} SETTINGS or GOAWAY at once", ENHANCE_YOUR_CALM)
        self._number += 1
        barrier = Barrier(self._number, send, waits, blocks)
        self.barriers.append(barrier)
        return barrier

    def due(self, now: float, barrier: Barrier) -> None:
        """Note that a barrier is due, and send it as soon as it need not wait."""
        barrier.is_due = True
        self._release(now)

    def _clear_way(self, now: float, ticket: int) -> bool:
        """Send the barriers that block frames with this ticket; return whether none is left."""
        for barrier in [b for b in self.barriers if b.blocks and b.number <= ticket]:
            if barrier.waits and self._is_preceded(barrier):
                return False
            self._send(now, barrier)
        return True

    def _is_preceded(self, barrier: Barrier) -> bool:
        return any(ticket < barrier.number for ticket in self._on_the_way)

    def _send(self, now: float, barrier: Barrier) -> None:
        self.barriers.remove(barrier)
        barrier.send(now)

    def _count_down(self, ticket: int) -> None:
        if self._on_the_way[ticket] > 1:
            self._on_the_way[ticket] -= 1
        else:
            del self._on_the_way[ticket]

    def _release(self, now: float) -> None:
        """Send and deliver all frames that are due and not blocked."""
        moved = True
        while moved:
            moved = False
            for barrier in tuple(self.barriers):
                waits = barrier.waits and self._is_preceded(barrier)
                if (
                    barrier.is_due
                    and barrier in self.barriers
                    and not waits
                    and self._clear_way(now, barrier.number - 1)
                ):
                    self._send(now, barrier)
                    moved = True
            for entry in tuple(self._behind):
                ticket, deliver = entry
                if self._clear_way(now, ticket):
                    self._behind.remove(entry)
                    deliver(now)
                    self._count_down(ticket)
                    moved = True
