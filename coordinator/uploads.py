"""Updates on their way in: each into a buffer of its own, so that a broken one never touches the mean.

An upload that is slow must not hold up those that are not. Three things see to it: buffers in memory, of a bounded
number; beyond them buffers on the disk, also bounded; and when both are taken, an upload that cannot arrive before
its round is over makes room for one that can.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import structlog

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.errors import StaleWork, StorageError, Unavailable
from hypergpu.common.tensors import Assembler, Flat
from hypergpu.coordinator.health import Tell

log = structlog.get_logger()

MOST_IN_MEMORY: Final = 256
"""Buffers in memory, however small the model."""
MOST_ON_DISK: Final = 256
"""Buffers on the disk, however small the model."""
LEAST_MEASURED_SECONDS: Final = 1.0
"""Time that an upload has before its speed is judged: the first chunk says little."""
STALLED_SECONDS: Final = 5.0
"""Time without a byte after which an upload is not expected to go on, however fast it was."""
_JUDGE_SECONDS: Final = 0.5
"""Between two looks for an upload that makes room, while others wait."""

UnitOfWork = tuple[int, int]
"""(round, attempt) of a node."""


@dataclass(eq=False)
class Upload:
    """One update, whole or in parts."""

    node: str
    work: UnitOfWork
    assembler: Assembler
    opened_at: float = 0.0
    """When the present stream began."""
    opened_offset: int = 0
    """Bytes that were held when the present stream began."""
    stream: object | None = field(default=None)
    """Who sends it now; None while it waits to be resumed."""
    made_room: bool = False
    """It lost its buffer to another upload."""
    _seen: tuple[int, float] = (-1, 0.0)
    """Bytes that were held when that was last looked at, and since when they are."""

    def begin_stream(self, stream: object, now: float) -> None:
        """Let a stream feed the upload from now on."""
        self.stream = stream
        self.opened_at, self.opened_offset = now, self.assembler.next_offset
        self._seen = (self.opened_offset, now)

    def seconds_left(self, now: float) -> float:
        """Return how long the rest takes at the speed of the present stream; 0 while nothing can be said."""
        held, seconds = self.assembler.next_offset, now - self.opened_at
        if held != self._seen[0]:
            self._seen = (held, now)
        received, missing = held - self.opened_offset, self.assembler.flat.nbytes - held
        if not missing or seconds < LEAST_MEASURED_SECONDS:
            return 0.0
        if not received or now - self._seen[1] > STALLED_SECONDS:
            return math.inf
        return missing * seconds / received


@dataclass(frozen=True)
class Disk:
    """Where buffers go that memory does not hold."""

    make: Callable[[int], Flat]
    """Makes a buffer of so many bytes; called on a thread. Raises StorageError."""
    limit_bytes: int
    """Bytes of all buffers on the disk."""
    tell: Tell = lambda reason: None
    """Told why no buffer could be made, and with an empty text that one was."""


class Uploads:
    """The uploads under way: one for each node at most, in a bounded number of buffers.

    Whoever comes when all buffers are taken waits, unread, so that flow control slows the sender. An upload that nobody
    sends at the moment keeps what it has, until its buffer is needed.

    Args:
        total_bytes: size of an update.
        memory_bytes: of the buffers in memory; two are always allowed.
        disk: for those beyond; None allows none.
        deadline: when the running round ends, by `clock`; None while none runs.
    """

    def __init__(
        self,
        total_bytes: int,
        memory_bytes: int,
        disk: Disk | None = None,
        *,
        deadline: Callable[[], float | None] = lambda: None,
        clock: Clock = monotonic,
    ) -> None:
        self.deadline = deadline
        self._total_bytes = total_bytes
        self._free: list[Flat] = []
        self._spare = max(2, min(MOST_IN_MEMORY, memory_bytes // max(1, total_bytes)))
        self._disk = disk
        self._disk_spare = min(MOST_ON_DISK, disk.limit_bytes // max(1, total_bytes)) if disk is not None else 0
        self._on_disk: set[int] = set()
        self._held: dict[str, Upload] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._clock = clock
        self._too_slow: set[str] = set()
        """Nodes whose uploads made room in this round. They take no buffer from others: two slow ones would take it
        from each other for ever."""

    def progress(self, node: str, work: UnitOfWork) -> int:
        """Bytes that are held of this unit of work, without a gap from the start."""
        upload = self._held.get(node)
        return upload.assembler.next_offset if upload is not None and upload.work == work else 0

    async def open(self, node: str, work: UnitOfWork, stream: object) -> Upload:
        """Begin an upload, or go on with one that broke; an older stream of the same node loses it."""
        upload = self._held.get(node)
        if upload is not None and upload.work == work:
            upload.begin_stream(stream, self._clock())
            return upload
        if upload is not None:
            self.close(upload)
        buffer = await self._buffer(node)
        former = self._held.get(node)  # another stream of the node may have come while this one waited
        if former is not None:
            self.close(former)
        upload = self._held[node] = Upload(node, work, Assembler(self._total_bytes, buffer))
        upload.begin_stream(stream, self._clock())
        return upload

    def require_current(self, upload: Upload, stream: object) -> None:
        """Check that this stream still feeds the upload.

        Raises:
            Unavailable: the upload made room for one that can arrive in time; it may be sent again.
            StaleWork: another stream took over, or the upload was given up.
        """
        if upload.made_room and upload.node not in self._held:
            raise Unavailable(f"the upload of {upload.node} is too slow for its round and made room; send it again")
        if self._held.get(upload.node) is not upload or upload.stream is not stream:
            raise StaleWork(f"another upload of {upload.node} has taken the place of this one")

    def suspend(self, upload: Upload, stream: object) -> None:
        """The stream broke; what has arrived is kept for a while."""
        if upload.stream is stream:
            upload.stream = None
            self._wake()

    def detach(self, upload: Upload) -> Flat:
        """The whole update, which the caller gives back by `recycle`."""
        if self._held.get(upload.node) is upload:
            del self._held[upload.node]
        return upload.assembler.flat

    def close(self, upload: Upload) -> None:
        """Give the upload up."""
        if self._held.get(upload.node) is upload:
            del self._held[upload.node]
            self.recycle(upload.assembler.flat)

    def begin_round(self, number: int) -> None:
        """Give up what is left of earlier rounds, and what nobody sends: no one will go on with it."""
        self._too_slow.clear()
        for upload in [u for u in self._held.values() if u.stream is None or u.work[0] != number]:
            self.close(upload)

    def recycle(self, buffer: Flat) -> None:
        """A buffer is free again; one on the disk is given back to it."""
        if id(buffer) in self._on_disk:
            self._on_disk.discard(id(buffer))
            self._disk_spare += 1
        else:
            self._free.append(buffer)
        self._wake()

    # ------------------------------------------------------------ buffers

    async def _buffer(self, node: str) -> Flat:
        """Return a buffer, as soon as one can be had."""
        while True:
            if self._free:
                return self._free.pop()
            if self._spare:
                self._spare -= 1
                return np.empty(self._total_bytes // 4, np.float32)
            buffer = await self._buffer_on_disk()
            if buffer is not None:
                return buffer
            if not self._free and not self._make_room(node):
                await self._wait()

    async def _buffer_on_disk(self) -> Flat | None:
        disk = self._disk
        if disk is None or not self._disk_spare:
            return None
        self._disk_spare -= 1
        made = asyncio.get_running_loop().run_in_executor(None, disk.make, self._total_bytes)
        try:
            buffer = await made
        except StorageError as error:
            self._disk_spare += 1
            disk.tell(str(error))
            return None
        except BaseException:  # the stream ended meanwhile; a buffer that is made yet goes with its future
            self._disk_spare += 1
            self._wake()
            raise
        disk.tell("")
        self._on_disk.add(id(buffer))
        return buffer

    def _make_room(self, node: str) -> bool:
        """Close an upload that nobody sends or that comes too late, for a node that waits; return whether one was."""
        closed = next((upload for upload in self._held.values() if upload.stream is None), None)
        if closed is None and node not in self._too_slow:
            closed = self._hopeless()
            if closed is not None:
                self._too_slow.add(closed.node)
        if closed is None:
            return False
        closed.made_room = True
        self.close(closed)
        return True

    def _hopeless(self) -> Upload | None:
        """Return the slowest upload that does not arrive before the round is over, if there is one."""
        deadline, now = self.deadline(), self._clock()
        if deadline is None or not self._held:
            return None
        slowest = max(self._held.values(), key=lambda upload: upload.seconds_left(now))
        if slowest.seconds_left(now) <= max(0.0, deadline - now):
            return None
        log.info("an upload that is too slow for its round makes room", node=slowest.node)
        return slowest

    async def _wait(self) -> None:
        """Wait in turn until something changed, or until the uploads are to be judged again."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait((turn,), timeout=_JUDGE_SECONDS)
        except BaseException:
            if turn.done():
                self._wake()  # it was this one's turn: the next one has it
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _wake(self) -> None:
        """Let the one that has waited longest try again."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
