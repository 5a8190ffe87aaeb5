"""Parameters over several connections: shared chunks, and what broken connections have lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from hypergpu.common.byte_ranges import ByteRange, ByteRanges
from hypergpu.common.connections import MOST_FAILURES, MOST_FETCHES
from hypergpu.common.errors import HyperGPUError, StaleWork, Unavailable
from hypergpu.common.tensors import STRIPE_BYTES, Assembler, Chunk, checksum
from hypergpu.node.downloading import Receive, SharedDownload

PAYLOAD = np.random.default_rng(0).integers(0, 256, 6 * STRIPE_BYTES + 7, np.uint8)


class Sender:
    """The coordinator's end: its streams share the chunks; ranges that are asked for are sent again."""

    def __init__(self) -> None:
        self.waiting = ByteRanges([(0, PAYLOAD.nbytes)])
        self.asked: list[Sequence[ByteRange]] = []
        self.sent = 0
        self.faults: list[HyperGPUError] = []
        """Errors that happen instead of the next chunks of streams that `breaks`."""

    async def stream(self, ranges: Sequence[ByteRange] = (), *, breaks: bool = False) -> AsyncIterator[Chunk]:
        self.asked.append(ranges)
        waiting = ByteRanges(ranges) if ranges else self.waiting
        while (piece := waiting.take(STRIPE_BYTES)) is not None:
            await asyncio.sleep(0)
            if breaks and self.faults:
                raise self.faults.pop()  # with the chunk on its way
            self.sent += piece.end - piece.start
            data = PAYLOAD[piece.start : piece.end].data
            yield Chunk(piece.start, data, checksum(data))

    def connection(self, *, breaks: bool = False) -> Receive:
        return lambda ranges: self.stream(ranges, breaks=breaks)


class Receiver(SharedDownload):
    def __init__(self) -> None:
        self.parameters = Assembler(np.zeros(PAYLOAD.nbytes, np.uint8))
        self.counted = 0
        super().__init__(self.parameters, self.count)

    def count(self, chunk: Chunk, connection: int) -> None:
        del connection
        self.counted += self.parameters.add(chunk)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypergpu.node.downloading.FIRST_BACKOFF_SECONDS", 0.0)


async def test_the_streams_share_the_chunks_and_none_arrives_twice() -> None:
    sender, receiver = Sender(), Receiver()
    await receiver.receive(sender.stream(), [sender.connection(), sender.connection()])
    assert np.array_equal(receiver.parameters.payload, PAYLOAD)
    assert receiver.counted == sender.sent == PAYLOAD.nbytes


async def test_the_chunk_of_a_connection_that_breaks_is_asked_for_again() -> None:
    sender, receiver = Sender(), Receiver()
    sender.faults = [Unavailable("reset")]
    await receiver.receive(sender.stream(), [sender.connection(breaks=True), sender.connection()])
    assert sender.faults == [], "it broke"
    assert np.array_equal(receiver.parameters.payload, PAYLOAD)
    assert [len(ranges) for ranges in sender.asked if ranges] == [1]
    assert receiver.counted == sender.sent == PAYLOAD.nbytes


async def test_the_connection_that_brought_the_order_may_break_too() -> None:
    sender, receiver = Sender(), Receiver()
    sender.faults = [Unavailable("reset")]
    await receiver.receive(sender.stream(breaks=True), [sender.connection()])
    assert sender.faults == []
    assert np.array_equal(receiver.parameters.payload, PAYLOAD)
    assert [ranges for ranges in sender.asked if ranges] == [[ByteRange(0, STRIPE_BYTES)]]


async def test_when_nothing_helps_the_error_says_how_much_is_there() -> None:
    sender, receiver = Sender(), Receiver()
    sender.faults = [Unavailable("cut")] * 100
    with pytest.raises(Unavailable, match="the parameters ended after 0 bytes: cut"):
        await receiver.receive(sender.stream(breaks=True), [sender.connection(breaks=True)])
    assert len(sender.asked) == 1 + MOST_FAILURES + MOST_FETCHES


async def test_an_error_about_the_work_unit_ends_all_streams() -> None:
    sender, receiver = Sender(), Receiver()
    sender.faults = [StaleWork("round 3 closed")]
    with pytest.raises(StaleWork, match="round 3 closed"):
        await receiver.receive(sender.stream(), [sender.connection(breaks=True)])
    assert not any(sender.asked)
