"""Transfers over several connections through a real proxy with packet loss."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from hypergpu.common.byte_ranges import ByteRanges
from hypergpu.common.codecs import PayloadFormat, find_codec
from hypergpu.node.client import CoordinatorClient, Work
from hypergpu.node.core.held_parameters import HeldParameters
from hypergpu.node.core.update_encoder import EncodedUpdate
from hypergpu.node.credentials import Credentials
from hypergpu.node.trainer import Step, Update
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import Running, running, toy_task
from tests.e2e.test_proxy import proxy

pytestmark = pytest.mark.e2e

FEATURES = 250_000
LOSSY = "profiles:\n  lossy: {rtt_ms: [50, 50], loss: 0.01, down: {bandwidth_mbit: 50}, up: {bandwidth_mbit: 50}}\n"
"""One connection carries about 3 Mbit/s here."""


@asynccontextmanager
async def node_behind(run: Running, address: str) -> AsyncIterator[tuple[CoordinatorClient, HeldParameters, str]]:
    """A registered node that dials through a proxy."""
    async with CoordinatorClient(address, Credentials("a")) as client:
        reply = await client.register(pb.RegisterRequest(node_id="a", incarnation="1"))
        request = pb.RegisterRequest(node_id="a", incarnation="1", identity=reply.identity)
        await client.register(request)
        manifest = run.coordinator.engine.model.manifest
        yield client, HeldParameters(manifest, manifest.size), reply.run_id


def update_of(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> tuple[Update, EncodedUpdate]:
    step = Step(0.5, None, 1.0, 2, 0.0, 0.0, 0.0)
    form = PayloadFormat(find_codec("none"), values.size, 0)
    return Update(values, (step, step), 0.1), EncodedUpdate(form, values.view(np.uint8), 0.0)


async def exchange(tmp_path: Path, connections: int) -> tuple[float, float, float]:
    """Seconds of the download and of the upload of 2 MB, and the longest round trip of a heartbeat meanwhile."""
    task = toy_task(FEATURES)
    async with running(tmp_path, task=task, transfers={"connections": connections}) as run:
        upstream = run.address
        profiles = tmp_path / "profiles.yaml"
        profiles.write_text(LOSSY)
        link = (f"--profiles={profiles}", "--profile=lossy", "--loss-model=transport", "--insecure")
        with proxy(f"--upstream={upstream}", *link) as (found, _):
            async with node_behind(run, found["listening"]) as (client, held, run_id):
                longest = 0.0

                async def beat() -> None:
                    nonlocal longest
                    while True:
                        began = time.monotonic()
                        await client.heartbeat(pb.HeartbeatRequest(node_id="a", run_id=run_id, state="pulling"))
                        longest = max(longest, time.monotonic() - began)
                        await asyncio.sleep(0.1)

                beating = asyncio.create_task(beat())
                began = time.monotonic()
                work = await client.pull(run_id, 10.0, held, lambda work: None)
                assert isinstance(work, Work)
                pulled = time.monotonic()
                np.testing.assert_array_equal(held.flat, run.coordinator.engine.model.values)
                update, encoded = update_of(np.ones(held.flat.size, np.float32))
                missing = ByteRanges([(0, encoded.payload.nbytes)])
                reply = await client.push(work, held.manifest, update, encoded, missing, timeout_seconds=120)
                pushed = time.monotonic()
                beating.cancel()
                assert reply.outcome == pb.PushUpdateReply.ACCEPTED
                assert client.bytes_sent == encoded.payload.nbytes
                return pulled - began, pushed - pulled, longest


async def test_eight_connections_bring_a_lossy_link_near_its_rate_and_heartbeats_never_wait(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "eight").mkdir()
    one = await exchange(tmp_path / "one", 1)
    eight = await exchange(tmp_path / "eight", 8)
    print("down, up, longest heartbeat:", one, eight)
    assert eight[0] < 0.4 * one[0]
    assert eight[1] < 0.4 * one[1]
    assert max(one[2], eight[2]) < 1.0, "a heartbeat takes a round trip of 50 ms, and what the queue adds"
