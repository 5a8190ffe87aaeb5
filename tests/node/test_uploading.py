"""An update over several connections: shared chunks, broken connections, outcomes."""

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from hypergpu.common.byte_ranges import ByteRanges
from hypergpu.common.connections import MOST_FAILURES
from hypergpu.common.errors import CorruptData, HyperGPUError, StaleWork, Unavailable
from hypergpu.common.tensors import CHUNK_BYTES, STRIPE_BYTES, Assembler, Chunk, Payload, checksum
from hypergpu.node import uploading
from hypergpu.node.client import missing_of
from hypergpu.node.uploading import Send, SharedUpload
from hypergpu.protos import coordinator_pb2 as pb

PAYLOAD: Payload = np.random.default_rng(0).integers(0, 256, 8 * STRIPE_BYTES + 5, np.uint8)
LONG: Payload = np.random.default_rng(0).integers(0, 256, 2 * CHUNK_BYTES + 5, np.uint8)
INCOMPLETE = pb.PushUpdateReply(outcome=pb.PushUpdateReply.INCOMPLETE)
ACCEPTED = pb.PushUpdateReply(outcome=pb.PushUpdateReply.ACCEPTED)


class Receiver:
    """The coordinator's end: takes chunks in, and tells the outcome on the stream that ends last."""

    def __init__(self, payload: Payload = PAYLOAD) -> None:
        self.assembler = Assembler(np.zeros(payload.nbytes, np.uint8))
        self.chunks: dict[int, list[int]] = {}
        self.counted = 0
        self.asked = 0
        self.is_unreachable = False

    async def missing(self) -> ByteRanges:
        self.asked += 1
        if self.is_unreachable:
            raise Unavailable("unreachable")
        return ByteRanges(self.assembler.missing)

    def connection(self, number: int, fault: Callable[[int], HyperGPUError | None] = lambda count: None) -> Send:
        """A connection; `fault` has the error that happens instead of a chunk's arrival, by chunks so far."""
        sizes = self.chunks.setdefault(number, [])

        async def send(chunks: AsyncIterator[Chunk]) -> pb.PushUpdateReply:
            async for chunk in chunks:
                await asyncio.sleep(0)
                if (error := fault(len(sizes))) is not None:
                    sizes.append(-1)
                    raise error
                sizes.append(len(chunk.data))
                self.counted += self.assembler.add(chunk)
            return ACCEPTED if self.assembler.complete else INCOMPLETE

        return send


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "FIRST_BACKOFF_SECONDS", 0.0)


async def test_several_connections_share_the_chunks_and_none_is_sent_twice() -> None:
    receiver = Receiver()
    upload = SharedUpload(PAYLOAD, ByteRanges([(0, PAYLOAD.nbytes)]), 3)
    reply = await upload.send([receiver.connection(number) for number in range(3)], receiver.missing)
    assert reply is ACCEPTED
    assert np.array_equal(receiver.assembler.payload, PAYLOAD)
    assert receiver.chunks == {0: [STRIPE_BYTES] * 3, 1: [STRIPE_BYTES] * 3, 2: [STRIPE_BYTES] * 2 + [5]}
    assert receiver.counted == upload.bytes_sent == PAYLOAD.nbytes
    assert receiver.asked == 0


async def test_one_connection_sends_long_chunks_without_asking() -> None:
    receiver = Receiver(LONG)
    upload = SharedUpload(LONG, ByteRanges([(0, LONG.nbytes)]), 1)
    assert await upload.send([receiver.connection(0)], receiver.missing) is ACCEPTED
    assert receiver.chunks == {0: [CHUNK_BYTES, CHUNK_BYTES, 5]}


async def test_one_connection_that_breaks_is_the_life_cycles_affair() -> None:
    receiver = Receiver(LONG)
    upload = SharedUpload(LONG, ByteRanges([(0, LONG.nbytes)]), 1)
    broken = receiver.connection(0, lambda count: Unavailable("gone") if count == 1 else None)
    with pytest.raises(Unavailable, match="gone"):
        await upload.send([broken], receiver.missing)
    assert list(receiver.assembler.missing) == [(CHUNK_BYTES, LONG.nbytes)]


async def test_only_what_is_missing_is_sent() -> None:
    receiver = Receiver()
    for chunk in (Chunk(0, PAYLOAD.data[:100], 0),):
        receiver.assembler.missing.remove(0, 100)
        receiver.assembler.payload[:100] = chunk.data
    upload = SharedUpload(PAYLOAD, ByteRanges(receiver.assembler.missing), 2)
    assert await upload.send([receiver.connection(number) for number in range(2)], receiver.missing) is ACCEPTED
    assert receiver.counted == upload.bytes_sent == PAYLOAD.nbytes - 100
    assert np.array_equal(receiver.assembler.payload, PAYLOAD)


@pytest.mark.parametrize("error", [Unavailable("reset"), CorruptData("flipped")])
async def test_a_connection_that_breaks_loses_its_chunk_to_the_others_and_comes_back(error: HyperGPUError) -> None:
    receiver = Receiver()
    upload = SharedUpload(PAYLOAD, ByteRanges([(0, PAYLOAD.nbytes)]), 2)
    broken = receiver.connection(0, lambda count: error if count == 1 else None)
    assert await upload.send([broken, receiver.connection(1)], receiver.missing) is ACCEPTED
    assert receiver.chunks[0][:2] == [STRIPE_BYTES, -1], "it broke, with a chunk on its way"
    assert receiver.asked == 1
    assert np.array_equal(receiver.assembler.payload, PAYLOAD)
    assert receiver.counted == PAYLOAD.nbytes
    assert upload.bytes_sent == PAYLOAD.nbytes


async def test_a_connection_that_never_works_is_given_up_and_the_others_send_everything() -> None:
    receiver = Receiver()
    upload = SharedUpload(PAYLOAD, ByteRanges([(0, PAYLOAD.nbytes)]), 2)
    dead = receiver.connection(0, lambda count: Unavailable("dead"))
    reply = await upload.send([dead, receiver.connection(1)], receiver.missing)
    assert reply is ACCEPTED
    assert receiver.chunks[0] == [-1] * len(receiver.chunks[0])
    assert len(receiver.chunks[0]) <= MOST_FAILURES
    assert receiver.counted == PAYLOAD.nbytes


async def test_when_all_connections_break_the_rest_is_left_to_another_attempt() -> None:
    receiver = Receiver()
    upload = SharedUpload(PAYLOAD, ByteRanges([(0, PAYLOAD.nbytes)]), 2)
    dead = [receiver.connection(number, lambda count: Unavailable("cut") if count else None) for number in range(2)]
    with pytest.raises(Unavailable, match="the update is incomplete: cut"):
        await upload.send(dead, receiver.missing)
    assert [len(chunks) for chunks in receiver.chunks.values()] == [1 + MOST_FAILURES] * 2
    rest = ByteRanges(receiver.assembler.missing)
    assert rest.total == PAYLOAD.nbytes - 2 * STRIPE_BYTES
    again = SharedUpload(PAYLOAD, rest, 2)
    assert await again.send([receiver.connection(number) for number in (2, 3)], receiver.missing) is ACCEPTED
    assert receiver.counted == PAYLOAD.nbytes


async def test_chunks_of_unknown_fate_are_not_sent_again_blindly() -> None:
    receiver = Receiver()
    receiver.is_unreachable = True
    upload = SharedUpload(PAYLOAD, ByteRanges([(0, PAYLOAD.nbytes)]), 2)
    broken = receiver.connection(0, lambda count: Unavailable("reset") if count == 0 else None)
    with pytest.raises(Unavailable, match="the update is incomplete: reset"):
        await upload.send([broken, receiver.connection(1)], receiver.missing)
    assert list(receiver.assembler.missing) == [(0, STRIPE_BYTES)]


async def test_an_error_about_the_whole_update_ends_all_connections() -> None:
    receiver = Receiver()
    upload = SharedUpload(PAYLOAD, ByteRanges([(0, PAYLOAD.nbytes)]), 2)
    stale = receiver.connection(0, lambda count: StaleWork("another run"))
    with pytest.raises(StaleWork, match="another run"):
        await upload.send([stale, receiver.connection(1)], receiver.missing)
    assert not receiver.assembler.complete
    assert receiver.asked == 0


async def test_an_outcome_on_one_connection_ends_the_others() -> None:
    late = pb.PushUpdateReply(outcome=pb.PushUpdateReply.LATE)
    ended: list[str] = []

    async def told(chunks: AsyncIterator[Chunk]) -> pb.PushUpdateReply:
        await anext(chunks)
        return late

    async def stuck(chunks: AsyncIterator[Chunk]) -> pb.PushUpdateReply:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("stuck")
        return ACCEPTED

    upload = SharedUpload(PAYLOAD, ByteRanges([(0, PAYLOAD.nbytes)]), 2)
    assert await upload.send([stuck, told], Receiver().missing) is late
    assert ended == ["stuck"]


async def test_an_update_that_arrived_needs_its_outcome_only() -> None:
    receiver = Receiver()
    receiver.assembler.missing.remove(0, PAYLOAD.nbytes)
    upload = SharedUpload(PAYLOAD, ByteRanges(), 1)
    assert await upload.send([receiver.connection(0)], receiver.missing) is ACCEPTED
    assert receiver.chunks == {0: []}


def test_what_is_held_of_another_payload_is_sent_anew() -> None:
    payload = np.arange(100, dtype=np.uint8)
    held = pb.UploadProgress(missing=[pb.ByteRange(start=60, end=100)])
    assert list(missing_of(held, payload)) == [(60, 100)]
    held.payload_crc32c = checksum(payload.data)
    assert list(missing_of(held, payload)) == [(60, 100)]
    assert list(missing_of(held, payload + 1)) == [(0, 100)]
