"""Measurement of one transfer by its receiver: bytes, and the seconds in which they arrived."""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

PAUSE_SECONDS: Final = 0.05
"""Time without reading after which flow control may have stopped the sender."""
_MOST_TRAVELLING: Final = 0.1
"""Share of the measured bytes that may have arrived before: the error of the rate is half of it at most."""
_MARK_GROWTH: Final = 1.25
"""Factor between the bytes at two marks."""


class Transfer(NamedTuple):
    """Measured part of one transfer in one direction."""

    nbytes: int
    """Payload that arrived in the measured time."""
    seconds: float
    """Time in which it arrived; 0 if it arrived at once."""
    bytes_before: int = 0
    """Payload that arrived right before it: by then the sender's congestion window had grown."""
    seconds_before: float = 0.0
    """Time in which that arrived."""

    @property
    def is_possible(self) -> bool:
        """True if it has bytes, nothing is negative, and the times are finite."""
        nbytes, seconds, bytes_before, seconds_before = self
        return nbytes > 0 and 0.0 <= seconds < math.inf and bytes_before >= 0 and 0.0 <= seconds_before < math.inf


@dataclass(slots=True)
class _Mark:
    nbytes: int
    """Bytes of the pieces that were complete."""
    at: float
    travelling: float = 0.0
    """Bytes of other pieces that may have arrived."""

    @property
    def counted(self) -> int:
        """Bytes that are taken to have arrived."""
        return self.nbytes + round(0.5 * self.travelling)

    def is_certain(self, nbytes: int) -> bool:
        """Return whether the bytes after the mark, of so many in all, are known well."""
        return self.travelling <= _MOST_TRAVELLING * (nbytes - self.counted)


class TransferMeter:
    """Measures a transfer from its pieces as they arrive, over any number of connections.

    The measurement is the longest stretch in which pieces arrived without a pause of the sender or of the receiver.
    Of a stretch of several pieces only the later half or a little more counts, because the sender's congestion window
    still grows in the beginning. The memory does not grow with the number of pieces.

    A piece counts when it is complete. With several connections, parts of others are on their way by then, as much as
    since the last piece on their connection or nothing, and the half counts. Where that makes much of the measured
    part, it begins earlier, in the end with the first byte.

    Args:
        began_at: Arrival of the first byte, such as that of the header before the data; None if that is unknown, and
            the first piece counts only as the beginning.
    """

    __slots__ = ("_best", "_ended_at", "_is_begin_known", "_latest", "_marks", "_nbytes")

    def __init__(self, began_at: float | None = None) -> None:
        self._best: Transfer | None = None
        self._nbytes = 0
        self._ended_at = 0.0
        self._marks: list[_Mark] = []
        """Some arrivals, each with `_MARK_GROWTH` times the bytes of the one before it."""
        self._latest: dict[int, float] = {}
        """Time of the latest arrival on each connection."""
        self._is_begin_known = began_at is not None
        """False: the first piece of each connection may have been on its way for any time, and does not count."""
        if began_at is not None:
            self._begin(began_at)

    def piece(self, nbytes: int, at: float, *, connection: int = 0, more: bool = True) -> None:
        """Count a piece that has arrived completely.

        Args:
            nbytes: Size of its payload.
            at: Time of its arrival in seconds; an earlier time than that of the piece before it counts as the same.
            connection: Number of the connection that brought it.
            more: Whether the sender had more to send at once. If not, the time until the next piece does not count.
        """
        if not self._marks:
            self._begin(at)
        elif self._is_begin_known or connection in self._latest:
            self._nbytes += nbytes
            self._ended_at = max(self._ended_at, at)
            self._count_travelling(nbytes, self._latest.get(connection, self._marks[0].at))
            if self._nbytes >= max(1, _MARK_GROWTH * self._marks[-1].nbytes):
                self._marks.append(_Mark(self._nbytes, self._ended_at))
        self._latest[connection] = max(self._ended_at, at)
        if not more:
            self.pause()

    def _count_travelling(self, nbytes: int, since: float) -> None:
        """Count what may have arrived of a piece at each mark since the piece before it on its connection."""
        for mark in reversed(self._marks):
            if mark.at <= since:
                return
            mark.travelling += nbytes * (mark.at - since) / (self._ended_at - since)

    def pause(self) -> None:
        """End the stretch: the sender had nothing to send, or the receiver did not read for `PAUSE_SECONDS`."""
        self._best = self.measured
        self._nbytes = 0
        self._marks = []
        self._latest = {}
        self._is_begin_known = False

    @property
    def measured(self) -> Transfer | None:
        """Measurement so far; None before two arrivals without a pause between them."""
        best, nbytes = self._best, self._nbytes
        begun = [mark for mark in self._marks if 2 * mark.counted <= nbytes and mark.is_certain(nbytes)]
        if not begun or not nbytes:
            return best
        before, since = begun[-1].counted, begun[-1].at
        latest = Transfer(nbytes - before, self._ended_at - since, before, since - self._marks[0].at)
        return latest if best is None or latest.nbytes > best.nbytes else best

    def _begin(self, at: float) -> None:
        self._ended_at = at
        self._marks.append(_Mark(0, at))
