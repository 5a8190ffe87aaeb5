"""Two uploads that drip, and three that don't, where memory holds two: the three arrive in time."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.tensors import chunks
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, Order, running

UPDATE = np.ones(8, np.float32)
"""Of 32 bytes: more than half of the memory for uploads."""


async def drip(node: FakeNode, order: Order, stop: asyncio.Event) -> Any:
    """Send a first piece, and then nothing."""

    async def parts() -> AsyncIterator[Any]:
        yield node.header(order.order)
        yield next(iter(chunks(UPDATE, chunk_bytes=4)))
        await stop.wait()

    return await node._push(parts(), metadata=node.metadata)


@pytest.mark.parametrize("disk_bytes", [1 << 20, 0], ids=["disk", "no disk"])
async def test_slow_uploads_do_not_hold_up_the_others(tmp_path: Path, disk_bytes: int) -> None:
    server = {"upload_memory_bytes": 60, "upload_disk_bytes": disk_bytes}
    async with running(tmp_path, training={"rounds": 1, "min_nodes": 5}, server=server) as run:
        nodes = [run.node(name) for name in ("slow_1", "slow_2", "a", "b", "c")]
        for node in nodes:
            await node.register()
        orders = await asyncio.gather(*(node.work() for node in nodes))
        stop = asyncio.Event()
        dripping = [asyncio.create_task(drip(*pair, stop)) for pair in zip(nodes[:2], orders[:2], strict=True)]
        uploads = run.coordinator.engine.uploads
        while len(uploads._held) < 2:  # noqa: ASYNC110  (both are about to come)
            await asyncio.sleep(0.01)
        # Without a disk they are judged by the time that is left; with one, nobody has to make room.
        uploads.deadline = lambda: None if disk_bytes else run.coordinator.engine.now + 0.5
        quick = [node.push(order, UPDATE) for node, order in zip(nodes[2:], orders[2:], strict=True)]
        outcomes = await asyncio.wait_for(asyncio.gather(*quick), 20)
        assert outcomes == [pb.PushUpdateReply.ACCEPTED] * 3
        stop.set()
        await asyncio.gather(*dripping, return_exceptions=True)
