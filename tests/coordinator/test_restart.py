"""A coordinator that stays when its run is over, and begins the next one when a user asks."""

import asyncio
import json
from pathlib import Path

import grpc
import numpy as np
import pytest

from hypergpu.common.config.training import TrainingConfig
from hypergpu.coordinator.checkpoints import read_tensors
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, Running, code_of, running
from tests.patience import patience

STAY = {"stay": True, "heartbeat_seconds": 0.1, "heartbeat_misses": 5}


async def contribute(node: FakeNode, rounds: int) -> None:
    for _ in range(rounds):
        await node.push(await node.work(), np.ones(8, np.float32))


async def status_of(run: Running) -> pb.Status:
    status: pb.Status = await run.control.GetStatus(pb.GetStatusRequest())
    return status


async def test_a_run_without_an_end_goes_on_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 0}) as run:
        node = run.node("a")
        await node.register()
        await contribute(node, 30)
        assert (await node.work()).order.work.round == 31
        status = await status_of(run)
        assert (status.state, status.round, status.rounds) == ("training", 31, 0)
        assert run.get("/healthz") == "training, round 31\n"
        assert "hypergpu_rounds_planned 0.0" in run.get("/metrics")
        assert "hypergpu_round 31.0" in run.get("/metrics")
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] == 30


async def test_a_finished_run_that_stays_keeps_its_nodes_and_says_how_to_begin_the_next(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 1}, server=STAY) as run:
        node = run.node("a")
        await node.register()
        await contribute(node, 1)
        await run.coordinator.engine.finished.wait()
        status = await status_of(run)
        assert status.state == "completed"
        assert status.waiting_for == "the next run: `hypergpu restart` begins one"
        assert run.get("/healthz") == "completed, round 1 of 1, waiting for " + status.waiting_for + "\n"
        assert await node.pull(wait=0.0) == "completed"
        assert await node.heartbeat() == pb.HeartbeatReply.CONTINUE, "the node is not sent home"
        late = run.node("late")
        await late.register()
        assert await late.pull(wait=5.0) == "completed"
        assert (await status_of(run)).nodes_connected == 2
        await run.control.Restart(pb.RestartRequest())
    assert run.coordinator.restart_asked
    assert run.done.result() == 0


async def test_a_node_that_falls_silent_after_the_end_is_noticed(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 1}, server=STAY) as run:
        node = run.node("a")
        await node.register()
        await contribute(node, 1)
        async with asyncio.timeout(10):
            while (await status_of(run)).nodes_connected:  # noqa: ASYNC110  (nothing tells it)
                await asyncio.sleep(0.05)
        await run.control.Restart(pb.RestartRequest())


async def test_a_running_run_is_stopped_and_saved_before_the_next(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 0}, server=STAY) as run:
        node = run.node("a")
        await node.register()
        await contribute(node, 2)
        await run.control.Restart(pb.RestartRequest())
        assert await asyncio.wait_for(run.done, patience(30)) == 0
    assert run.coordinator.restart_asked
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["state"], summary["rounds"]) == ("stopped", 2)
    assert list((tmp_path / "checkpoints").glob("round-000002*")), "its model is kept"
    assert "restarted by the user" in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize("stay", [True, False])
@pytest.mark.parametrize("rounds", [0, 2])
async def test_an_interrupted_run_leaves_its_model(tmp_path: Path, rounds: int, stay: bool) -> None:
    async with running(tmp_path, training={"rounds": 0}, server=STAY | {"stay": stay}) as run:
        node = run.node("a")
        await node.register()
        await contribute(node, rounds)
        await node.work()
        parameters = run.coordinator.engine.model.values.copy()
        run.interrupted.set()
        assert await asyncio.wait_for(run.done, patience(30)) == 0
    assert not run.coordinator.restart_asked
    tensors, metadata = read_tensors(tmp_path / "model.safetensors")
    assert metadata["round"] == str(rounds)
    saved = np.concatenate([tensor.numpy().ravel() for tensor in tensors.values()])
    np.testing.assert_array_equal(np.sort(saved), np.sort(parameters), "the file has its own order of tensors")
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] == rounds


async def test_a_round_that_ends_while_the_coordinator_goes_is_saved_too(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 0}, server=STAY) as run:
        node = run.node("a")
        await node.register()
        await contribute(node, 1)
        order = await node.work()
        run.coordinator.engine.suspend()
        await node.push(order, np.ones(8, np.float32))
        run.interrupted.set()
        assert await asyncio.wait_for(run.done, patience(30)) == 0
    assert read_tensors(tmp_path / "model.safetensors")[1]["round"] == "2"
    assert list((tmp_path / "checkpoints").glob("round-000002*"))
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] == 2


async def test_a_coordinator_that_ends_with_its_run_cannot_be_restarted(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        code, text = await code_of(run.control.Restart(pb.RestartRequest()))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "--set=server.stay=true" in text
        assert not run.coordinator.engine.restart_asked.is_set()
    assert not run.coordinator.restart_asked


@pytest.mark.parametrize(
    ("rounds", "round_number", "last", "shown", "text"),
    [
        (3, 2, False, 2, "round 2 of 3"),
        (3, 3, True, 3, "round 3 of 3"),
        (3, 4, True, 3, "round 3 of 3"),
        (0, 1, False, 1, "round 1"),
        (0, 10**6, False, 10**6, "round 1000000"),
    ],
)
def test_the_last_round(rounds: int, round_number: int, last: bool, shown: int, text: str) -> None:
    config = TrainingConfig(rounds=rounds)
    assert config.is_last(round_number) is last
    assert config.shown_round(round_number) == shown
    assert config.progress(round_number) == text
