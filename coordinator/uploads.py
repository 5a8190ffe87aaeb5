"""Updates on their way in: each into a buffer of its own, so that a broken one never touches the mean."""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from common.errors import StaleWork
from common.tensors import Assembler, Flat

UnitOfWork = tuple[int, int]
"""(round, attempt) of a node."""


@dataclass(eq=False)
class Upload:
    """One update, whole or in parts."""

    node: str
    work: UnitOfWork
    assembler: Assembler
    stream: object | None = field(default=None)
    """Who sends it now; None while it waits to be resumed."""


class Uploads:
    """The uploads under way: one for each node at most, in a bounded number of recycled buffers.

    Whoever comes when all buffers are taken waits, unread, so that flow control slows the sender. An upload that nobody
    sends at the moment keeps what it has, until its buffer is needed.
    """

    def __init__(self, total_bytes: int, memory_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._free: list[Flat] = []
        self._spare = max(2, min(256, memory_bytes // max(1, total_bytes)))
        self._held: dict[str, Upload] = {}
        self._changed = asyncio.Condition()

    def progress(self, node: str, work: UnitOfWork) -> int:
        """Bytes that are held of this unit of work, without a gap from the start."""
        upload = self._held.get(node)
        return upload.assembler.next_offset if upload is not None and upload.work == work else 0

    async def open(self, node: str, work: UnitOfWork, stream: object) -> Upload:
        """Begin an upload, or go on with one that broke; an older stream of the same node loses it."""
        upload = self._held.get(node)
        if upload is not None and upload.work == work:
            upload.stream = stream
            return upload
        if upload is not None:
            self.close(upload)
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            former = self._held.get(node)  # another stream of the node may have come while this one waited
            if former is not None:
                self.close(former)
            buffer = self._take()
            upload = self._held[node] = Upload(node, work, Assembler(self._total_bytes, buffer), stream)
            return upload

    def require_current(self, upload: Upload, stream: object) -> None:
        """Check that this stream still feeds the upload.

        Raises:
            StaleWork: another stream took over, or the upload was given up.
        """
        if self._held.get(upload.node) is not upload or upload.stream is not stream:
            raise StaleWork(f"another upload of {upload.node} has taken the place of this one")

    def suspend(self, upload: Upload, stream: object) -> None:
        """The stream broke; what has arrived is kept for a while."""
        if upload.stream is stream:
            upload.stream = None
            self._notify()

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

    def close_idle(self) -> None:
        """A round is over: nobody will go on with what is left of it."""
        for upload in [u for u in self._held.values() if u.stream is None]:
            self.close(upload)

    def recycle(self, buffer: Flat) -> None:
        """A buffer is free again."""
        self._free.append(buffer)
        self._notify()

    def _has_room(self) -> bool:
        if self._free or self._spare:
            return True
        idle = next((u for u in self._held.values() if u.stream is None), None)
        if idle is None:
            return False
        self.close(idle)
        return True

    def _take(self) -> Flat:
        if self._free:
            return self._free.pop()
        self._spare -= 1
        return np.empty(self._total_bytes // 4, np.float32)

    def _notify(self) -> None:
        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._waking = asyncio.get_running_loop().create_task(wake())
