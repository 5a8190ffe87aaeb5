"""Download of parameters over several connections, which the coordinator fills as each can take more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from hypergpu.common.byte_ranges import ByteRange, ByteRanges
from hypergpu.common.connections import FIRST_BACKOFF_SECONDS, MOST_FAILURES, MOST_FETCHES
from hypergpu.common.errors import HyperGPUError, Unavailable
from hypergpu.common.tensors import STRIPE_BYTES, Assembler, Chunk
from hypergpu.node.uploading import TRANSIENT

Receive = Callable[[Sequence[ByteRange]], AsyncIterator[Chunk]]
"""Receives chunks on one connection: those of certain ranges, or without ranges those that no other one has taken."""
Deliver = Callable[[Chunk, int], None]


class SharedDownload:
    """The chunks of one work unit's parameters, over several connections.

    Args:
        assembler: receives the parameters.
        deliver: called with each chunk that arrives and the number of its connection; raises CorruptData for a damaged
            one.
    """

    def __init__(self, assembler: Assembler, deliver: Deliver) -> None:
        self._assembler, self._deliver = assembler, deliver
        self._error: HyperGPUError | None = None

    async def receive(self, first: AsyncIterator[Chunk], others: Sequence[Receive]) -> None:
        """Receive all parameters; a connection that breaks does not stop the others.

        Args:
            first: chunks on the connection that brought the order.
            others: the other connections.

        Raises:
            Unavailable: not all of them arrived.
            HyperGPUError: an error that concerns the whole work unit.
        """
        await self._run([self._read(first, 0), *(self._share(each, number) for number, each in enumerate(others, 1))])
        for _ in range(MOST_FETCHES):
            if self._assembler.complete:
                return
            lost = ByteRanges(self._assembler.missing)
            await self._run([self._fetch(each, number, lost) for number, each in enumerate(others, 1)])
        if not self._assembler.complete:
            held = self._assembler.received
            raise Unavailable(f"the parameters ended after {held} bytes: {self._error or 'chunks are missing'}")

    async def _run(self, streams: Sequence[Coroutine[Any, Any, object]]) -> None:
        """Let streams receive until all have ended or everything has arrived."""
        working = {asyncio.create_task(stream) for stream in streams}
        try:
            while working and not self._assembler.complete:
                done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _read(self, chunks: AsyncIterator[Chunk], number: int) -> bool:
        """Deliver the chunks of one stream; return whether it ended without an error."""
        try:
            async for chunk in chunks:
                self._deliver(chunk, number)
        except TRANSIENT as error:
            self._error = error
            return False
        return True

    async def _share(self, receive: Receive, number: int) -> None:
        """Receive what no other connection has taken, again after the connection broke."""
        for failures in range(MOST_FAILURES):
            if await self._read(receive(()), number):
                return
            await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2**failures)

    async def _fetch(self, receive: Receive, number: int, lost: ByteRanges) -> None:
        """Receive chunks that a broken connection has lost, one after the other."""
        while (piece := lost.take(STRIPE_BYTES)) is not None:
            if not await self._read(receive([piece]), number):
                return
