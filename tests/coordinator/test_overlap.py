"""Updates that travel ahead of their figures, over real gRPC: they count once, and only with their figures."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.tensors import Assembler, Chunk, chunks
from hypergpu.common.wire import decode_work_part
from hypergpu.coordinator.uploads import Uploads
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, Running, running

Outcome = pb.PushUpdateReply
TRAINING = {"fragments": 2, "overlap": True, "rounds": 4}
WEIGHT, BIAS = 6, 2
"""Values of the two fragments: even rounds synchronise the first, odd ones the second."""


@dataclass
class Node:
    """A node that says which version it holds."""

    fake: FakeNode
    held: int = 0

    async def work(self) -> pb.WorkOrder:
        """Return the next order, when its parameters have arrived."""
        fake = self.fake
        request = pb.PullWorkRequest(
            node_id=fake.name,
            run_id=fake.run_id,
            wait_seconds=20.0,
            parameters_version=self.held,
            fragment_versions=[0, 0] if self.held else [],
        )
        order, assembler = pb.WorkOrder(), Assembler(np.empty(0, np.uint8))
        async for data in fake._pull(request, metadata=fake.metadata):
            part = decode_work_part(data)
            if isinstance(part, Chunk):
                assembler.add(part)
            else:
                order = part.order
                assembler = Assembler(np.empty(order.parameters.payload_bytes, np.uint8))
        assert assembler.complete
        self.held = order.parameters_version
        return order

    async def send(self, order: pb.WorkOrder, value: float | None, **header: Any) -> Outcome:
        """Send a header, and an update of this value; None sends the header alone."""
        content = np.full(order.update.payload_bytes // 4, 0.0 if value is None else value, np.float32)
        pieces = [] if value is None else list(chunks(content))
        return await self.fake.push_parts([self.fake.header(order, **header), *pieces])


async def joined(run: Running, name: str = "a") -> Node:
    node = Node(run.node(name))
    await node.fake.register()
    return node


async def test_an_update_ahead_of_its_figures_counts_once_when_they_come(tmp_path: Path) -> None:
    async with running(tmp_path, training=TRAINING) as run:
        node, model = await joined(run), run.coordinator.engine.model
        first = await node.work()
        assert list(first.fragments.parameters) == [0, 1]
        assert not first.fragments.background, "a node without a model waits for all of it"
        assert first.update.payload_bytes == 4 * BIAS
        assert (await node.send(first, 1.0)).outcome == Outcome.ACCEPTED
        second = await node.work()
        assert (list(second.fragments.parameters), second.fragments.update) == ([1], 0)
        assert second.fragments.background
        assert second.update.payload_bytes == 4 * WEIGHT
        before = model.values.copy()
        for _ in range(2):  # also when it is sent again
            reply = await node.send(second, 2.0, figures_follow=True)
            assert (reply.outcome, reply.next_offset) == (Outcome.RECEIVED, 4 * WEIGHT)
        assert not run.coordinator.engine.machine.round_state.closed_round
        np.testing.assert_array_equal(model.values, before)
        assert (await node.send(second, None)).outcome == Outcome.ACCEPTED
        assert (await node.send(second, None)).outcome == Outcome.DUPLICATE
        await node.work()
        assert sorted(model.values - before) == pytest.approx([0.0] * BIAS + [2.0] * WEIGHT)


async def test_what_is_missing_of_an_update_can_come_with_its_figures(tmp_path: Path) -> None:
    async with running(tmp_path, training=TRAINING) as run:
        node = await joined(run)
        await node.send(await node.work(), 1.0)
        order = await node.work()
        pieces = list(chunks(np.full(WEIGHT, 2.0, np.float32), chunk_bytes=8))
        ahead = [node.fake.header(order, figures_follow=True), *pieces[:2]]
        reply = await node.fake.push_parts(ahead)
        assert (reply.outcome, reply.next_offset) == (Outcome.INCOMPLETE, 16)
        assert (await node.send(order, None)).outcome == Outcome.INCOMPLETE, "the figures alone are not enough"
        reply = await node.fake.push_parts([node.fake.header(order), *pieces[2:]])
        assert reply.outcome == Outcome.ACCEPTED


async def test_an_update_whose_round_is_over_is_on_record_once(tmp_path: Path) -> None:
    training = {**TRAINING, "min_nodes": 2, "close_share": 0.5}
    async with running(tmp_path, training=training) as run:
        a, b = await joined(run, "a"), await joined(run, "b")
        early, late = await asyncio.gather(a.work(), b.work())
        assert (await a.send(early, 1.0)).outcome == Outcome.ACCEPTED
        assert (await b.send(late, 1.0, figures_follow=True)).outcome == Outcome.LATE
        members = run.coordinator.engine.machine.members
        assert members.require("b").late == 0, "its figures are still to come"
        assert (await b.send(late, None)).outcome == Outcome.LATE
        assert members.require("b").late == 1


async def test_an_update_that_is_complete_makes_no_room_for_others() -> None:
    uploads = Uploads(8, 0)  # two are always let in
    content = list(chunks(np.ones(2, np.float32)))
    stream = object()
    whole = await uploads.open("whole", (1, 1), stream)
    whole.assembler.add(content[0])
    uploads.suspend(whole, stream)
    part = await uploads.open("part", (1, 1), stream)
    uploads.suspend(part, stream)
    await uploads.open("new", (1, 1), stream)
    assert uploads.progress("whole", (1, 1)) is not None
    assert uploads.progress("part", (1, 1)) is None


async def test_updates_without_figures_do_not_hold_up_the_others(tmp_path: Path) -> None:
    server = {"upload_memory_bytes": 1, "upload_disk_bytes": 0}
    async with running(tmp_path, training={**TRAINING, "min_nodes": 4}, server=server) as run:
        nodes = [await joined(run, name) for name in ("silent", "gone", "a", "b")]
        orders = await asyncio.gather(*(node.work() for node in nodes))
        for node, order in list(zip(nodes, orders, strict=True))[:2]:
            assert (await node.send(order, 1.0, figures_follow=True)).outcome == Outcome.RECEIVED
        gone = nodes[1].fake
        await gone.stub.Leave(pb.LeaveRequest(node_id="gone", run_id=gone.run_id), metadata=gone.metadata)
        assert (await asyncio.wait_for(nodes[2].send(orders[2], 1.0), 5)).outcome == Outcome.ACCEPTED
        assert (await nodes[2].send(orders[2], None)).outcome == Outcome.DUPLICATE
        uploads = run.coordinator.engine.uploads
        other = await uploads.open("other", (1, 1), object(), 4)  # in the buffer of the one that left
        other.assembler.add(next(iter(chunks(np.ones(1, np.float32)))))
        uploads.deadline = lambda: run.coordinator.engine.now + 0.3
        assert (await asyncio.wait_for(nodes[3].send(orders[3], 1.0), 20)).outcome == Outcome.ACCEPTED
        assert (await nodes[0].send(orders[0], None)).outcome == Outcome.INCOMPLETE, "it has made room"


@pytest.mark.parametrize(("now", "makes_room"), [(15.0, False), (15.1, True)])
async def test_a_complete_upload_makes_room_if_others_wait_longer_than_is_left(now: float, makes_room: bool) -> None:
    clock = ManualClock(0.0)
    uploads = Uploads(8, 0, deadline=lambda: 20.0, clock=clock)
    for node in "ab":
        upload = await uploads.open(node, (1, 1), node)
        upload.assembler.add(next(iter(chunks(np.ones(2, np.float32)))))
        uploads.suspend(upload, node)
    clock.now = 10.0
    waiting = asyncio.create_task(uploads.open("c", (1, 1), "c"))
    await asyncio.sleep(0.02)
    clock.now = now
    await asyncio.sleep(0.7)  # it looks twice a second
    assert waiting.done() is makes_room
    assert (uploads.progress("a", (1, 1)) is None) is makes_room
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
