"""Transfers over several connections, as the coordinator serves them: shared chunks, and requests that lie."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hypergpu.common.byte_ranges import ByteRange
from hypergpu.common.errors import ProtocolError, ResourceExhausted, StaleWork
from hypergpu.common.tensors import CHUNK_BYTES, MAX_GAPS, STRIPE_BYTES, Assembler, Chunk, chunks
from hypergpu.common.wire import decode_work_part, encode_part
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.downloads import MAX_STREAMS, Downloads, chosen_ranges, encoded
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import SERVICE, FakeNode, Running, code_of, running, toy_task

FEATURES = 500_000
MODEL_BYTES = 4 * 2 * (FEATURES + 1)
PAYLOAD = np.random.default_rng(0).integers(0, 256, 3 * CHUNK_BYTES + 100, np.uint8)
SENDING = Sending("none")
PARTS = [encode_part(chunk) for chunk in chunks(PAYLOAD)]


def chunk_of(part: bytes) -> Chunk:
    chunk = decode_work_part(part)
    assert isinstance(chunk, Chunk)
    return chunk


# ------------------------------------------------------------ downloads


def test_one_stream_gets_the_chunks_as_they_were_encoded() -> None:
    download = Downloads().begin("a", (1, 1), SENDING, PAYLOAD.nbytes, 1)
    sent = [encoded(PARTS, piece) for piece in iter(download.take, None)]
    assert [id(part) for part in sent] == [id(part) for part in PARTS]


def test_several_streams_share_shorter_chunks_and_each_byte_is_sent_once() -> None:
    downloads = Downloads()
    download = downloads.begin("a", (1, 1), SENDING, PAYLOAD.nbytes, 4)
    assert downloads.join("a", (1, 1)) is download
    assembler, counted = Assembler(np.zeros(PAYLOAD.nbytes, np.uint8)), 0
    for piece in iter(download.take, None):
        chunk = chunk_of(encoded(PARTS, piece))
        assert len(chunk.data) == STRIPE_BYTES or chunk.offset + len(chunk.data) == PAYLOAD.nbytes
        counted += assembler.add(chunk)
    assert assembler.complete
    assert counted == PAYLOAD.nbytes
    assert np.array_equal(assembler.payload, PAYLOAD)


def test_ranges_that_were_asked_for_begin_where_they_should() -> None:
    ranges = chosen_ranges([(100, 200), (CHUNK_BYTES - 50, CHUNK_BYTES + 70)], PAYLOAD.nbytes)
    downloads = Downloads()
    download = downloads.begin("a", (1, 1), SENDING, PAYLOAD.nbytes, 2)
    download.waiting = ranges
    pieces = list(iter(download.take, None))
    assert pieces == [(100, 200), (CHUNK_BYTES - 50, CHUNK_BYTES), (CHUNK_BYTES, CHUNK_BYTES + 70)]
    for piece in pieces:
        assert bytes(chunk_of(encoded(PARTS, piece)).data) == PAYLOAD[piece.start : piece.end].tobytes()
        assert chunk_of(encoded(PARTS, piece)).offset == piece.start


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 0)],
        [(5, 4)],
        [(0, PAYLOAD.nbytes + 1)],
        [(PAYLOAD.nbytes, PAYLOAD.nbytes + 1)],
        [(0, 10), (9, 20)],
        [(10, 20), (0, 5)],
        [(2 * i, 2 * i + 1) for i in range(MAX_GAPS + 1)],
    ],
)
def test_ranges_that_lie_are_refused(pairs: Sequence[tuple[int, int]]) -> None:
    with pytest.raises(ProtocolError):
        chosen_ranges(pairs, PAYLOAD.nbytes)


def test_ranges_may_touch_and_end_with_the_payload() -> None:
    assert list(chosen_ranges([(0, 10), (10, 20), (30, PAYLOAD.nbytes)], PAYLOAD.nbytes)) == [
        ByteRange(0, 20),
        ByteRange(30, PAYLOAD.nbytes),
    ]


def test_no_stream_joins_a_download_of_other_work() -> None:
    downloads = Downloads()
    downloads.begin("a", (1, 1), SENDING, 100, 4)
    for node, work in (("b", (1, 1)), ("a", (1, 2)), ("a", (2, 1))):
        with pytest.raises(StaleWork, match="are on their way"):
            downloads.join(node, work)
    downloads.begin("a", (1, 2), SENDING, 100, 4)
    with pytest.raises(StaleWork):
        downloads.join("a", (1, 1))


def test_the_streams_to_a_node_are_bounded() -> None:
    downloads = Downloads()
    streams = [downloads.streaming("a") for _ in range(MAX_STREAMS)]
    for stream in streams:
        stream.__enter__()
    with pytest.raises(ResourceExhausted, match="32 streams"), downloads.streaming("a"):
        pass
    with downloads.streaming("b"):
        pass
    streams.pop().__exit__(None, None, None)
    with downloads.streaming("a"):
        pass
    assert set(downloads._streams) == {"a"}


# ------------------------------------------------------------ over gRPC


class Striped:
    """A node that pulls and pushes over several calls."""

    def __init__(self, run: Running, name: str) -> None:
        self.node: FakeNode = run.node(name)
        self._parameters = run.channel.unary_stream(
            SERVICE + "PullParameters", pb.PullParametersRequest.SerializeToString, bytes
        )
        self._push = run.channel.stream_unary(SERVICE + "PushUpdate", encode_part, pb.PushUpdateReply.FromString)

    async def begin_pull(self) -> tuple[pb.WorkOrder, Any]:
        """The order of a work unit, and the call that brings the first of its chunks."""
        request = pb.PullWorkRequest(node_id=self.node.name, run_id=self.node.run_id, wait_seconds=10)
        call = self.node._pull(request, metadata=self.node.metadata)
        data = await call.read()
        assert isinstance(data, bytes)
        part = decode_work_part(data)
        assert not isinstance(part, Chunk)
        return part.order, call

    def more(self, work: pb.WorkId, ranges: Sequence[tuple[int, int]] = (), **fields: Any) -> Any:
        """A call for more parameters."""
        request = pb.PullParametersRequest(work=work, ranges=[pb.ByteRange(start=s, end=e) for s, e in ranges])
        for name, value in fields.items():
            setattr(request.work, name, value)
        return self._parameters(request, metadata=self.node.metadata)

    async def push(self, parts: Sequence[Any], until: asyncio.Event | None = None) -> pb.PushUpdateReply:
        """Sends parts, then waits for `until` before it ends its stream."""

        async def stream() -> AsyncIterator[Any]:
            for part in parts:
                yield part
            if until is not None:
                await until.wait()

        reply: pb.PushUpdateReply = await self._push(stream(), metadata=self.node.metadata)
        return reply


async def _chunks(call: Any) -> list[Chunk]:
    found = []
    while isinstance(data := await call.read(), bytes):
        found.append(chunk_of(data))
    return found


async def _read(call: Any) -> list[Chunk]:
    """Reads a call to its end, where its error is raised."""
    found = await _chunks(call)
    await call.code()
    return found


async def test_the_streams_of_a_pull_share_its_chunks(tmp_path: Path) -> None:
    async with running(tmp_path, task=toy_task(FEATURES), transfers={"connections": 4}) as run:
        node = Striped(run, "a")
        await node.node.register()
        order, first = await node.begin_pull()
        assert (order.connections.down, order.connections.up) == (4, 4)
        found = await asyncio.gather(_read(first), _read(node.more(order.work)), _read(node.more(order.work)))
        assembler = Assembler(np.zeros(MODEL_BYTES, np.uint8))
        assert sum(assembler.add(chunk) for stream in found for chunk in stream) == MODEL_BYTES
        assert assembler.complete
        assert sum(len(chunk.data) for stream in found for chunk in stream) == MODEL_BYTES, "no byte is sent twice"
        again = await _read(node.more(order.work, [(10, 30), (STRIPE_BYTES, STRIPE_BYTES + 5)]))
        assert [(chunk.offset, len(chunk.data)) for chunk in again] == [(10, 20), (STRIPE_BYTES, 5)]
        assert bytes(again[0].data) == assembler.payload[10:30].tobytes()


async def test_parameters_of_other_work_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, task=toy_task(FEATURES), transfers={"connections": 4}) as run:
        node, other = Striped(run, "a"), Striped(run, "b")
        await node.node.register()
        await other.node.register()
        order, first = await node.begin_pull()
        for changes, code in (
            ({"run_id": "another"}, grpc.StatusCode.FAILED_PRECONDITION),
            ({"round": 2}, grpc.StatusCode.FAILED_PRECONDITION),
            ({"attempt": 2}, grpc.StatusCode.FAILED_PRECONDITION),
            ({"attempt": 0}, grpc.StatusCode.FAILED_PRECONDITION),
            ({"node_id": "b"}, grpc.StatusCode.PERMISSION_DENIED),
        ):
            found, _ = await code_of(_read(node.more(order.work, **changes)))
            assert found is code, changes
        found, _ = await code_of(_read(other.more(order.work)))
        assert found is grpc.StatusCode.PERMISSION_DENIED
        for ranges in ([(0, MODEL_BYTES + 1)], [(5, 5)], [(0, 10), (5, 20)]):
            found, told = await code_of(_read(node.more(order.work, ranges)))
            assert found is grpc.StatusCode.ABORTED, told
        assert await _read(first)


async def test_the_last_stream_of_an_update_brings_the_outcome(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = Striped(run, "a")
        await node.node.register()
        order = await node.node.work()
        header = node.node.header(order.order)
        pieces = list(chunks(np.full(8, 2.0, np.float32), chunk_bytes=8))
        last = asyncio.Event()
        slow = asyncio.create_task(node.push([header, pieces[3], pieces[0]], until=last))
        reply = await node.push([header, pieces[2]])
        assert reply.outcome == pb.PushUpdateReply.INCOMPLETE
        progress = await node.node.stub.GetUploadProgress(order.order.work, metadata=node.node.metadata)
        while len(progress.missing) != 1:  # the other stream's chunks are on their way
            await asyncio.sleep(0.01)
            progress = await node.node.stub.GetUploadProgress(order.order.work, metadata=node.node.metadata)
        assert [(part.start, part.end) for part in progress.missing] == [(8, 16)]
        assert progress.next_offset == 8
        assert (await node.push([header, pieces[1], pieces[2]])).outcome == pb.PushUpdateReply.ACCEPTED
        last.set()
        assert (await slow).outcome == pb.PushUpdateReply.INCOMPLETE, "the outcome is told once"
        assert run.coordinator.engine.metrics.traffic()["bytes_received"] == 32, "every byte is counted once"
        following = await node.node.work()
        np.testing.assert_allclose(following.parameters, order.parameters + 2.0, rtol=1e-6)


async def test_an_update_that_came_whole_but_had_no_outcome_needs_a_header_only(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = Striped(run, "a")
        await node.node.register()
        order = await node.node.work()
        header = node.node.header(order.order)
        first, second = chunks(np.full(8, 2.0, np.float32), chunk_bytes=16)
        broken = asyncio.create_task(node.push([header, first, second], until=asyncio.Event()))
        while True:
            progress = await node.node.stub.GetUploadProgress(order.order.work, metadata=node.node.metadata)
            if progress.next_offset == 32:
                break
            await asyncio.sleep(0.01)
        assert not progress.missing
        assert not progress.accepted
        broken.cancel()
        assert (await node.push([header])).outcome in {pb.PushUpdateReply.ACCEPTED, pb.PushUpdateReply.DUPLICATE}
        assert (await node.push([header])).outcome == pb.PushUpdateReply.DUPLICATE


async def test_a_late_update_is_counted_once_for_all_of_its_streams(tmp_path: Path) -> None:
    async with running(tmp_path, training={"min_nodes": 2, "close_share": 0.5, "rounds": 3}) as run:
        node, other = Striped(run, "a"), run.node("b")
        await node.node.register()
        waiting = asyncio.create_task(node.node.work())
        await other.register()
        theirs, order = await other.work(), await waiting
        header = node.node.header(order.order)
        pieces = list(chunks(np.full(8, 2.0, np.float32), chunk_bytes=8))
        go = asyncio.Event()

        async def sending(index: int) -> pb.PushUpdateReply:
            async def stream() -> AsyncIterator[Any]:
                yield header
                await go.wait()
                yield pieces[index]

            reply: pb.PushUpdateReply = await node._push(stream(), metadata=node.node.metadata)
            return reply

        streams = [asyncio.create_task(sending(index)) for index in range(4)]
        while len(getattr(run.coordinator.engine.uploads._held.get("a"), "streams", ())) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await other.push(theirs, np.zeros(8, np.float32)) == pb.PushUpdateReply.ACCEPTED
        go.set()
        outcomes = [reply.outcome for reply in await asyncio.gather(*streams)]
        assert outcomes.count(pb.PushUpdateReply.LATE) == 1
        assert outcomes.count(pb.PushUpdateReply.INCOMPLETE) == 3
        assert run.coordinator.engine.machine.members.require("a").late == 1
