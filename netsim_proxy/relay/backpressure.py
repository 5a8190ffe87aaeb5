"""Backpressure in one direction of a link: readers wait until the link takes more."""

import math
from typing import Final, Protocol

from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Direction, LossModel
from hypergpu.netsim_proxy.relay.agenda import Agenda

PATH_BYTES: Final = 32 << 20
"""Largest number of bytes on the way that bandwidth × latency may ask for."""
_SHARED_BYTES: Final = PATH_BYTES
"""Bytes on the way at which all connections of a link wait for each other, whatever TCP allows each."""
_LONGEST_FRAME_BYTES: Final = 128 << 10
"""A frame counts until its last byte has arrived, so the next one is read while the longest is still on its way."""


class NumberedConnection(Protocol):
    """Connection with the number that the link knows."""

    number: int


class PausableReader(Protocol):
    """Reader that can be stopped."""

    @property
    def pair(self) -> NumberedConnection:
        """Its pair of connections."""

    def hold(self, reason: object) -> None:
        """Stop reading until every reason is released."""

    def release(self, reason: object) -> None:
        """Resume reading, unless other reasons remain."""


class Backpressure:
    """Stops readers while the link takes no more of them.

    With the `rpc` loss model all readers of a direction share one queue, and wait when it is full. With `transport`
    each waits until TCP has sent what it read before.

    Attributes:
        in_flight: bytes that are held or due later.
    """

    __slots__ = (
        "_agenda", "_by_reader", "_direction", "_full_bytes", "_link", "_resume_bytes", "_retry_at", "_waiting",
        "in_flight",
    )  # fmt: skip

    def __init__(self, link: Link, direction: Direction, agenda: Agenda) -> None:
        self._link, self._direction, self._agenda = link, direction, agenda
        self.in_flight = 0
        self._full_bytes = self._resume_bytes = 0
        self._by_reader: dict[PausableReader, int] = {}
        self._waiting: dict[PausableReader, None] = {}  # in the order in which they stopped
        self._retry_at = 0.0

    def resize(self, path_bytes: int, queue_bytes: int) -> None:
        """Set the capacity of the path and the queue. Reading resumes when the queue is half empty."""
        self._full_bytes = path_bytes + queue_bytes
        self._resume_bytes = self._full_bytes - queue_bytes // 2

    def add(self, now: float, reader: PausableReader, nbytes: int) -> None:
        """Count bytes that are on their way, and stop `reader` if the link takes no more of it."""
        if nbytes:  # the end of a connection has no bytes
            self.in_flight += nbytes
            self._by_reader[reader] = self._by_reader.get(reader, 0) + nbytes
        if reader not in self._waiting and (
            self._is_above(self._full_bytes, reader) or self._room_at(now, reader) > now
        ):
            self._waiting[reader] = None
            reader.hold(self)
            self.resume(now)

    def remove(self, now: float, reader: PausableReader, nbytes: int) -> None:
        """Count bytes that have been delivered or dropped."""
        self._subtract(reader, nbytes)
        if self._waiting:
            self.resume(now)

    def forget(self, reader: PausableReader, held_bytes: int) -> None:
        """Drop a reader whose connection is closed, and `held_bytes` of it that the link still held."""
        self._subtract(reader, held_bytes)
        self._waiting.pop(reader, None)

    def resume(self, now: float) -> None:
        """Release the readers that have room, and try again when the others may have it."""
        next_room_at = math.inf
        for reader in tuple(self._waiting):
            room_at = self._room_at(now, reader)
            if room_at > now:
                next_room_at = min(next_room_at, room_at)
            elif not self._is_above(self._resume_bytes, reader):
                del self._waiting[reader]
                reader.release(self)
        if next_room_at < math.inf and not now < self._retry_at <= next_room_at:
            self._retry_at = next_room_at
            self._agenda.at(next_room_at, self.resume)

    def _room_at(self, now: float, reader: PausableReader) -> float:
        return self._link.room_at(now, self._direction, reader.pair.number)

    def _is_above(self, limit_bytes: int, reader: PausableReader) -> bool:
        if self._link.loss_model is LossModel.RPC:
            return self.in_flight > limit_bytes
        own_bytes = self._by_reader.get(reader, 0)
        return self.in_flight > _SHARED_BYTES or own_bytes > self._full_bytes + _LONGEST_FRAME_BYTES

    def _subtract(self, reader: PausableReader, nbytes: int) -> None:
        if not nbytes:
            return
        self.in_flight -= nbytes
        left = self._by_reader[reader] - nbytes
        if left:
            self._by_reader[reader] = left
        else:
            del self._by_reader[reader]
