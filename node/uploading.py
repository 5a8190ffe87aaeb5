"""Upload of an update over one connection or several: each takes the next chunk when it can send."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from hypergpu.common.byte_ranges import ByteRanges
from hypergpu.common.connections import FIRST_BACKOFF_SECONDS, MOST_FAILURES
from hypergpu.common.errors import CorruptData, DeadlineExceeded, HyperGPUError, Unavailable
from hypergpu.common.tensors import CHUNK_BYTES, STRIPE_BYTES, Chunk, Payload, checksum
from hypergpu.protos import coordinator_pb2 as pb

Send = Callable[[AsyncIterator[Chunk]], Awaitable[pb.PushUpdateReply]]
"""Sends chunks on one connection; raises errors of `hypergpu.common.errors`."""
AskMissing = Callable[[], Awaitable[ByteRanges]]
"""Returns what the coordinator lacks of the update."""
TRANSIENT: Final = (Unavailable, DeadlineExceeded, CorruptData)
"""Errors of one connection, after which the same chunks may be sent again."""


class SharedUpload:
    """The chunks of one update that its connections share.

    Args:
        payload: bytes of the update.
        missing: what the coordinator lacks of it.
        connections: number of connections; a single one sends longer chunks.
    """

    def __init__(self, payload: Payload, missing: ByteRanges, connections: int) -> None:
        self._bytes = payload.data
        self._waiting = missing
        self._chunk_bytes = CHUNK_BYTES if connections == 1 else STRIPE_BYTES
        self._error: HyperGPUError | None = None
        self.bytes_sent = 0

    async def send(self, sends: Sequence[Send], ask_missing: AskMissing) -> pb.PushUpdateReply:
        """Send what is missing, and return the outcome that the coordinator replied.

        A connection that breaks does not stop the others. Which of its chunks are lost is asked, and they are sent
        again by whichever connection is free.

        Raises:
            Unavailable: not all of the update arrived; another attempt continues with the rest.
            HyperGPUError: an error that concerns the whole update.
        """
        working = {asyncio.create_task(self._work(send, ask_missing, len(sends) == 1)) for send in sends}
        try:
            while working:
                done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    reply = task.result()
                    if reply is not None:
                        return reply
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        raise Unavailable(f"the update is incomplete: {self._error or 'chunks are missing'}")

    async def _work(self, send: Send, ask_missing: AskMissing, is_only: bool) -> pb.PushUpdateReply | None:
        """Send chunks on one connection until none is waiting; return the outcome, or None without one."""
        failures = 0
        while True:
            given = ByteRanges()
            try:
                reply = await send(self._chunks(given))
            except TRANSIENT as error:
                self._error, failures = error, failures + 1
                if is_only:
                    raise
                await self._take_back(given, ask_missing)
                if failures == MOST_FAILURES:
                    return None
                await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (failures - 1))
            else:
                failures = 0
                if reply.outcome != pb.PushUpdateReply.INCOMPLETE:
                    return reply
            if not self._waiting:
                return None

    async def _chunks(self, given: ByteRanges) -> AsyncIterator[Chunk]:
        """Yield chunks that no connection has taken, and note them in `given`."""
        while (piece := self._waiting.take(self._chunk_bytes)) is not None:
            given.add(*piece)
            data = self._bytes[piece.start : piece.end]
            yield Chunk(piece.start, data, checksum(data))
            self.bytes_sent += len(data)

    async def _take_back(self, given: ByteRanges, ask_missing: AskMissing) -> None:
        """Let the chunks of a broken connection that did not arrive wait for another one."""
        try:
            missing = await ask_missing()
        except HyperGPUError:
            return  # unknown: they are asked for when the other connections are done
        for start, end in given:
            for part in missing.within(start, end):
                self._waiting.add(*part)
