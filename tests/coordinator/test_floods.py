"""A coordinator before callers that call too often: they are refused, and others are not."""

from functools import partial
from pathlib import Path

import grpc
import pytest

from hypergpu.common.call_budgets import USERS
from hypergpu.coordinator.budgets import NEWCOMERS, NODES, NodeBudgets
from hypergpu.coordinator.event_broadcaster import MAX_WATCHERS_OF_CALLER
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, code_of, running

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets whose time stands still: no call comes back, however slow this machine is."""
    monkeypatch.setattr("hypergpu.coordinator.app.NodeBudgets", partial(NodeBudgets, clock=lambda: 0.0))


async def test_names_that_never_ask_for_work_make_room_for_a_newcomer(tmp_path: Path) -> None:
    async with running(tmp_path, server={"max_nodes": 5}, training={"min_nodes": 2}) as run:
        member = run.node("member")
        await member.register()
        assert await member.pull(0.01) is None, "it has asked for work, and keeps its place"
        ghosts = [run.node(f"ghost-{number}") for number in range(4)]
        for ghost in ghosts:
            await ghost.register()
            await ghost.heartbeat()
        newcomer = run.node("newcomer")
        await newcomer.register()
        assert await newcomer.heartbeat() == pb.HeartbeatReply.CONTINUE
        assert await member.heartbeat() == pb.HeartbeatReply.CONTINUE
        assert await ghosts[0].heartbeat() == pb.HeartbeatReply.REGISTER_AGAIN, "the oldest had to go"
        assert await ghosts[1].heartbeat() == pb.HeartbeatReply.CONTINUE
        assert len(run.coordinator.engine.machine.members.connected) == 5


async def test_registrations_have_a_budget_by_address_and_nodes_with_a_lease_have_their_own(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        member = run.node("member")
        await member.register()
        refused = 0
        for number in range(int(NEWCOMERS.burst) + 20):
            try:
                await FakeNode(run.channel, f"flood-{number % 7}").stub.Register(
                    pb.RegisterRequest(node_id=f"flood-{number % 7}", incarnation="x")
                )
            except grpc.aio.AioRpcError as error:
                assert error.code() is EXHAUSTED
                assert "try again in" in (error.details() or "")
                refused += 1
        assert refused == 21, "the first one was that of the member"
        await member.register()
        assert await member.heartbeat() == pb.HeartbeatReply.CONTINUE
        assert f'hypergpu_calls_refused_total{{error="ResourceExhausted"}} {refused}.0' in run.get("/metrics")


@pytest.mark.parametrize("kind", ["heartbeats", "progress", "status"])
async def test_whoever_calls_too_often_is_refused_and_the_others_go_on(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path) as run:
        loud, quiet = run.node("loud"), run.node("quiet")
        await loud.register()
        await quiet.register()
        work = pb.WorkId(run_id=loud.run_id, round=1, node_id="loud", attempt=1)
        calls = {
            "heartbeats": loud.heartbeat,
            "progress": lambda: loud.stub.GetUploadProgress(work, metadata=loud.metadata),
            "status": lambda: run.control.GetStatus(pb.GetStatusRequest()),
        }
        limit = {"heartbeats": 50, "progress": NODES.burst + 1, "status": USERS.burst + 1}[kind]
        for _ in range(int(limit)):
            try:
                await calls[kind]()
            except grpc.aio.AioRpcError as error:
                assert error.code() is EXHAUSTED
                break
        else:
            pytest.fail("it was never refused")
        assert await quiet.heartbeat() == pb.HeartbeatReply.CONTINUE
        if kind != "heartbeats":
            assert await loud.heartbeat() == pb.HeartbeatReply.CONTINUE


async def test_one_address_does_not_take_the_places_of_all_watchers(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.node("a").register()
        watching = [run.control.WatchEvents(pb.WatchEventsRequest(replay=1)) for _ in range(MAX_WATCHERS_OF_CALLER)]
        for watch in watching:
            await watch.read()
        code, text = await code_of(run.control.WatchEvents(pb.WatchEventsRequest(replay=1)).read())
        assert (code, "watch this run already" in text) == (EXHAUSTED, True)
        watching.pop().cancel()
        for watch in watching:
            watch.cancel()
