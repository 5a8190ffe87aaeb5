"""Uploads of updates. Each has a buffer of its own, so that a broken upload never affects the mean.

A slow upload must not delay the others. Three mechanisms ensure this: a bounded number of buffers in memory; beyond
them a bounded number of buffers on the disk; and, when both are in use, the eviction of an upload that cannot arrive
before its round ends.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import structlog

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.errors import StaleWork, StorageError, Unavailable
from hypergpu.common.tensors import Assembler, Payload, checksum
from hypergpu.common.transfer_meter import Transfer, TransferMeter
from hypergpu.coordinator.health import ReportState

log = structlog.get_logger()

MOST_IN_MEMORY: Final = 256
"""Largest number of buffers in memory, whatever the model's size."""
MOST_ON_DISK: Final = 256
"""Largest number of buffers on the disk, whatever the model's size."""
LEAST_MEASURED_SECONDS: Final = 1.0
"""Time before the speed of an upload is judged: the first chunk is not representative."""
STALLED_SECONDS: Final = 5.0
"""Time without data after which an upload counts as stalled, whatever its earlier speed."""
_JUDGE_SECONDS: Final = 0.5
"""Interval of the search for an upload to evict while others wait for a buffer."""

WorkKey = tuple[int, int]
"""(round, attempt) of a node's work unit."""


@dataclass(eq=False)
class Upload:
    """Complete or partial upload of one update."""

    node: str
    work: WorkKey
    assembler: Assembler
    buffer: Payload
    """Buffer whose beginning receives the payload."""
    is_on_disk: bool = False
    """True if the buffer is on the disk."""
    checksum: int | None = None
    """CRC-32C of the whole payload, as its sender announced it; None if it did not."""
    opened_at: float = 0.0
    """Time at which the latest stream began."""
    opened_bytes: int = 0
    """Number of bytes received before the latest stream began."""
    streams: dict[object, float] = field(default_factory=dict)
    """Streams that send the upload, with the time of the latest chunk of each; none while it waits to be resumed."""
    is_taken: bool = False
    """True from the end of the first stream that found the upload complete or no longer needed: that one answers."""
    meter: TransferMeter | None = None
    """Measurement of the chunks of all streams, until it is taken."""
    made_room: bool = False
    """True if the upload was evicted in favour of another one."""
    blocks_since: float | None = None
    """Time since which it is complete, but for its figures, while others wait for a buffer; None if nobody does."""
    _seen: tuple[int, float] = (-1, 0.0)
    """Number of bytes at the last check, and the time since when it has not changed."""

    @property
    def payload(self) -> Payload:
        """Bytes of the update; those of `assembler.missing` have not arrived yet."""
        return self.assembler.payload

    @property
    def is_as_announced(self) -> bool:
        """True if a complete payload has the checksum that was announced."""
        return self.checksum is None or checksum(self.payload.data) == self.checksum

    def begin_stream(self, stream: object, now: float) -> None:
        """Add a stream. Beyond `MAX_CONNECTIONS` it replaces the one that was silent longest."""
        if len(self.streams) >= MAX_CONNECTIONS:
            del self.streams[min(self.streams, key=self.streams.__getitem__)]
        self.streams[stream] = now
        self.opened_at, self.opened_bytes = now, self.assembler.received
        self._seen = (self.opened_bytes, now)

    def take_measurement(self) -> Transfer | None:
        """Return what was measured of the streams since the last call."""
        meter, self.meter = self.meter, None
        return meter.measured if meter is not None else None

    def seconds_left(self, now: float) -> float:
        """Return the seconds that the rest takes at the present speed; 0 while that is unknown."""
        held, seconds = self.assembler.received, now - self.opened_at
        if held != self._seen[0]:
            self._seen = (held, now)
        received, missing = held - self.opened_bytes, self.payload.nbytes - held
        if not missing or seconds < LEAST_MEASURED_SECONDS:
            return 0.0
        if not received or now - self._seen[1] > STALLED_SECONDS:
            return math.inf
        return missing * seconds / received


@dataclass(frozen=True)
class Disk:
    """Factory and limits of buffers on the disk."""

    make: Callable[[int], Payload]
    """Function that makes a buffer of this many bytes on a worker thread, and raises StorageError if it cannot."""
    limit_bytes: int
    """Limit of the total size of all buffers on the disk."""
    report: ReportState = lambda reason: None
    """Callback for the reason why no buffer could be made; an empty reason after a success."""


class Uploads:
    """Active uploads, at most one per node with up to `MAX_CONNECTIONS` streams, in a bounded number of buffers.

    While all buffers are in use, a new upload is not read, so that flow control slows its sender down. An interrupted
    upload keeps its buffer until another upload needs it.

    Args:
        total_bytes: Size of the largest payload.
        memory_bytes: Limit of the buffers in memory; two are always allowed.
        disk: Buffers beyond that limit; None allows none.
        deadline: Returns the time by `clock` after which no update of the running round counts; None while no round
            runs.
        is_connected: Returns whether a node is connected.
    """

    def __init__(
        self,
        total_bytes: int,
        memory_bytes: int,
        disk: Disk | None = None,
        *,
        deadline: Callable[[], float | None] = lambda: None,
        is_connected: Callable[[str], bool] = lambda node: True,
        clock: Clock = monotonic,
    ) -> None:
        self.deadline, self.is_connected = deadline, is_connected
        self._total_bytes = total_bytes
        self._free: list[Payload] = []
        self._spare = max(2, min(MOST_IN_MEMORY, memory_bytes // max(1, total_bytes)))
        self._disk = disk
        self._disk_spare = min(MOST_ON_DISK, disk.limit_bytes // max(1, total_bytes)) if disk is not None else 0
        self._held: dict[str, Upload] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        """Held by the stream of a node that begins an upload, while the others wait to join it."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._clock = clock
        self._too_slow: set[str] = set()
        """Nodes whose uploads were evicted in this round. They evict no other upload: two slow ones would evict each
        other forever."""

    def progress(self, node: str, work: WorkKey) -> Assembler | None:
        """Return what has arrived of this work unit's update; None if nothing is held of it."""
        upload = self._held.get(node)
        return upload.assembler if upload is not None and upload.work == work else None

    def checksum_of(self, node: str, work: WorkKey) -> int | None:
        """Return the announced checksum of the upload of this work unit; None if there is none."""
        upload = self._held.get(node)
        return upload.checksum if upload is not None and upload.work == work else None

    async def open(
        self,
        node: str,
        work: WorkKey,
        stream: object,
        payload_bytes: int | None = None,
        *,
        announced: int | None = None,
    ) -> Upload:
        """Begin an upload, resume it, or join the streams that send it. One of another payload is given up.

        Args:
            node: Sender.
            work: Work unit of the update.
            stream: Stream that sends it.
            payload_bytes: Size of the payload; by default `total_bytes`, and never more.
            announced: CRC-32C of the whole payload.
        """
        async with self._opening.setdefault(node, asyncio.Lock()):  # the streams of one upload share one buffer
            upload = self._held.get(node)
            if upload is None or upload.work != work or upload.checksum != announced:
                if upload is not None:
                    self.close(upload)
                buffer, is_on_disk = await self._buffer(node)
                if not self._waiting:
                    _block_nobody(self._held.values())
                upload = self._held[node] = Upload(
                    node, work, Assembler(buffer[:payload_bytes]), buffer, is_on_disk, announced
                )
            upload.begin_stream(stream, self._clock())
            return upload

    def require_current(self, upload: Upload, stream: object) -> None:
        """Check that this stream still sends the upload, and note that it does.

        Raises:
            Unavailable: The upload was evicted for one that can arrive in time; the node may send it again.
            StaleWork: Other streams took over, or the upload was closed.
        """
        if upload.made_room and upload.node not in self._held:
            raise Unavailable(f"the upload of {upload.node} is too slow for its round and made room; send it again")
        if self._held.get(upload.node) is not upload or stream not in upload.streams:
            raise StaleWork(f"another upload of {upload.node} has taken the place of this one")
        upload.streams[stream] = self._clock()

    def suspend(self, upload: Upload, stream: object) -> None:
        """End a stream. What has arrived is kept, so that the upload can be resumed."""
        if upload.streams.pop(stream, None) is not None and not upload.streams:
            self._wake()

    def detach(self, upload: Upload) -> None:
        """Remove a complete upload; the caller returns its buffer with `recycle`."""
        if self._held.get(upload.node) is upload:
            del self._held[upload.node]

    def close(self, upload: Upload) -> None:
        """Discard an upload."""
        if self._held.get(upload.node) is upload:
            del self._held[upload.node]
            self.recycle(upload)

    def begin_round(self, number: int, is_late: Callable[[str, int], bool] = lambda node, number: False) -> None:
        """Discard uploads of earlier rounds and uploads without a stream; neither will be resumed.

        Those of which `is_late` says that a later round counts them, by node and round, go on.
        """
        self._too_slow.clear()
        self._opening = {node: lock for node, lock in self._opening.items() if lock.locked()}
        for upload in list(self._held.values()):
            is_over = not upload.streams or upload.work[0] != number
            if is_over and not is_late(upload.node, upload.work[0]):
                self.close(upload)

    def recycle(self, upload: Upload) -> None:
        """Release the buffer of an upload for others; the space of a buffer on the disk becomes available again."""
        if upload.is_on_disk:
            self._disk_spare += 1
        else:
            self._free.append(upload.buffer)
        self._wake()

    # ------------------------------------------------------------ buffers

    async def _buffer(self, node: str) -> tuple[Payload, bool]:
        """Return a buffer, and whether it is on the disk, waiting until one is free."""
        while True:
            if self._free:
                return self._free.pop(), False
            if self._spare:
                self._spare -= 1
                return np.empty(self._total_bytes, np.uint8), False
            buffer = await self._buffer_on_disk()
            if buffer is not None:
                return buffer, True
            if not self._free and not self._make_room(node):
                await self._wait()

    async def _buffer_on_disk(self) -> Payload | None:
        disk = self._disk
        if disk is None or not self._disk_spare:
            return None
        self._disk_spare -= 1
        made = asyncio.get_running_loop().run_in_executor(None, disk.make, self._total_bytes)
        try:
            buffer = await made
        except StorageError as error:
            self._disk_spare += 1
            disk.report(str(error))
            return None
        except BaseException:  # the stream ended; a buffer that is still being made is released with its future
            self._disk_spare += 1
            self._wake()
            raise
        disk.report("")
        return buffer

    def _make_room(self, node: str) -> bool:
        """Evict an interrupted or hopelessly slow upload in favour of a waiting node; return whether one was.

        One that is complete needs only its figures, and soon makes room itself, unless its node is gone.
        """
        closed = next((each for each in self._held.values() if _is_interrupted(each, self.is_connected)), None)
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
        """Return an upload that will miss the end of the round, or one that keeps others out of it, or None."""
        deadline, now = self.deadline(), self._clock()
        if deadline is None or not self._held:
            return None
        left = max(0.0, deadline - now)
        slowest = max(self._held.values(), key=lambda upload: upload.seconds_left(now))
        if slowest.seconds_left(now) > left:
            log.info("an upload that is too slow for its round makes room", node=slowest.node)
            return slowest
        blocking = _blocking(self._held.values(), now, left)
        if blocking is not None:
            log.info("an upload whose figures do not come makes room", node=blocking.node)
        return blocking

    async def _wait(self) -> None:
        """Wait in order of arrival until a buffer may be free, or until the next check of the uploads."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait((turn,), timeout=_JUDGE_SECONDS)
        except BaseException:
            if turn.done():
                self._wake()  # pass the turn on to the next in line
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _wake(self) -> None:
        """Wake the waiter that has waited longest."""
        if self._waiting:
            self._waiting.popleft().set_result(None)


def _is_interrupted(upload: Upload, is_connected: Callable[[str], bool]) -> bool:
    return not upload.streams and not (upload.assembler.complete and is_connected(upload.node))


def _blocking(uploads: Iterable[Upload], now: float, left: float) -> Upload | None:
    """Return a complete upload for whose figures others have waited longer than is left of the round, or None."""
    complete = [upload for upload in uploads if upload.assembler.complete]
    for upload in complete:
        if upload.blocks_since is None:
            upload.blocks_since = now
    return next((upload for upload in complete if now - (upload.blocks_since or 0.0) > left), None)


def _block_nobody(uploads: Iterable[Upload]) -> None:
    for upload in uploads:
        upload.blocks_since = None
