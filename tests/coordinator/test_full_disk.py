"""A coordinator whose disk is full, and background work that fails: it goes on, or ends and says why."""

import asyncio
import json
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.errors import StorageError
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.model_files import ModelFiles, Snapshot
from hypergpu.coordinator.run_dir import RunDir
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_services import FakeNode, Running, running

ONE = np.ones(8, np.float32)


class Disk:
    """Stands between the coordinator and its files."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full: set[str] = set()
        for owner, names in ((RunDir, ("nodes", "summary", "sync")), (ModelFiles, ("write", "finish"))):
            for name in names:
                self._put_before(patch, owner, name)
        write = RunDir._try

        def lines(run_dir: RunDir, name: str, function: Any) -> None:
            if name.endswith(".jsonl") and "lines" in self.full:
                function = _refuse
            write(run_dir, name, function)

        patch.setattr(RunDir, "_try", lines)

    def _put_before(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        real = getattr(owner, name)

        def method(self_: Any, *arguments: Any) -> Any:
            if name in self.full:
                raise StorageError(f"cannot write {name}: No space left on device")
            return real(self_, *arguments)

        patch.setattr(owner, name, method)


def _refuse() -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def joined(run: Running, name: str = "a") -> FakeNode:
    node = run.node(name)
    await node.register()
    return node


async def train(node: FakeNode, rounds: int = 1) -> None:
    for _ in range(rounds):
        assert await node.push(await node.work(), ONE) == pb.PushUpdateReply.ACCEPTED


async def written(run: Running) -> None:
    """Until the thread that writes lines has tried to write those so far."""
    await run.coordinator.engine._records.flush()


def rows(run: Path, name: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in (run / name).read_text().splitlines())


async def test_records_that_cannot_be_written_do_not_stop_the_rounds_and_are_written_later(
    tmp_path: Path, disk: Disk
) -> None:
    async with running(tmp_path, training={"rounds": 6}) as run:
        node = await joined(run)
        await train(node)
        disk.full |= {"lines", "nodes", "summary", "sync"}
        await train(node, 3)
        await node.work()
        await written(run)
        health = await asyncio.to_thread(run.get, "/healthz")
        assert health.startswith("training, round 5 of 6"), "nobody should kill a run that trains"
        assert "degraded: records: cannot write" in health
        status: pb.Status = await run.control.GetStatus(pb.GetStatusRequest())
        assert any("No space left on device" in problem for problem in status.problems)
        assert 'hypergpu_degraded{part="records"} 1.0' in await asyncio.to_thread(run.get, "/metrics")
        disk.full.clear()
        await run.coordinator.engine.retry()
        assert "records" not in await asyncio.to_thread(run.get, "/healthz")
        assert 'hypergpu_degraded{part="records"} 0.0' in await asyncio.to_thread(run.get, "/metrics")
        await train(node, 2)
        assert await asyncio.wait_for(run.done, 30) == 0
    assert [row["round"] for row in rows(tmp_path, "rounds.jsonl")] == [1, 2, 3, 4, 5, 6]
    kinds = [row["kind"] for row in rows(tmp_path, "events.jsonl")]
    assert kinds.count("round_closed") == 6
    assert "degraded" in kinds
    assert "recovered" in kinds
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] == 6


@pytest.mark.parametrize("error", [StorageError("full"), RuntimeError("odd"), MemoryError()])
async def test_a_checkpoint_that_fails_is_told_survived_and_made_up_for_with_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, fails = ModelFiles.write, [error]

    def write(self: ModelFiles, snapshot: Snapshot) -> Path:
        if fails:
            raise fails.pop()
        return real(self, snapshot)

    monkeypatch.setattr(ModelFiles, "write", write)
    async with running(tmp_path, training={"rounds": 9}, checkpoint={"every": 2}) as run:
        node = await joined(run)
        await train(node, 2)
        await node.work()
        await run.coordinator.engine._background.settle()
        assert run.coordinator.engine.problems == [f"checkpoint: {str(error) or 'MemoryError'}"]
        await train(node)
        await node.work()
        await run.coordinator.engine._background.settle()
        assert [file.name for file in (tmp_path / "checkpoints").glob("round-*")] == ["round-000003.safetensors"]
        assert run.coordinator.engine.problems == []
    assert await run.done == 0
    failed = [row for row in rows(tmp_path, "events.jsonl") if row["kind"] == "checkpoint_failed"]
    assert [row["round"] for row in failed] == [2]


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5])])
async def test_checkpoints_are_as_many_rounds_apart_as_was_asked_and_one_is_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, expected: list[int]
) -> None:
    saved: list[int] = []
    real = ModelFiles.write

    def write(self: ModelFiles, snapshot: Snapshot) -> Path:
        saved.append(snapshot.checkpoint.round)
        return real(self, snapshot)

    monkeypatch.setattr(ModelFiles, "write", write)
    async with running(tmp_path, training={"rounds": 5}, checkpoint={"every": every}) as run:
        await train(await joined(run), 5)
        assert await asyncio.wait_for(run.done, 30) == 0
    assert sorted(set(saved)) == expected


@pytest.mark.parametrize("full", ["finish", "write"])
async def test_a_result_that_cannot_be_written_is_told_and_the_coordinator_exits_with_a_code(
    tmp_path: Path, disk: Disk, full: str
) -> None:
    async with running(tmp_path) as run:
        disk.full.add(full)
        await train(await joined(run), 2)
        assert await asyncio.wait_for(run.done, 30) == 1
    assert "could not be written" in run.coordinator.engine.failure
    assert "checkpoint_failed" in [row["kind"] for row in rows(tmp_path, "events.jsonl")]


async def test_a_result_that_can_be_written_after_all_is_no_failure(tmp_path: Path, disk: Disk) -> None:
    async with running(tmp_path, server={"linger_seconds": 30.0}) as run:
        disk.full |= {"finish", "write"}
        node = await joined(run)
        await train(node, 2)
        await asyncio.wait_for(run.coordinator.engine.finished.wait(), 30)
        assert not (tmp_path / "model.safetensors").exists()
        disk.full.clear()
        await run.coordinator.engine.retry()
        assert (tmp_path / "model.safetensors").exists()
        await node.stub.Leave(pb.LeaveRequest(node_id="a", run_id=node.run_id), metadata=node.metadata)
        assert await asyncio.wait_for(run.done, 30) == 0


async def test_records_that_stay_incomplete_end_in_a_code(tmp_path: Path, disk: Disk) -> None:
    async with running(tmp_path) as run:
        node = await joined(run)
        await train(node)
        disk.full |= {"lines", "nodes"}
        await train(node)
        assert await asyncio.wait_for(run.done, 30) == 1
    assert "rounds.jsonl" in run.coordinator.engine.failure
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(("full", "what"), [("write", "its last checkpoint"), ("finish", "its model")])
async def test_a_suspended_run_that_cannot_be_saved_says_so_by_its_code(
    tmp_path: Path, disk: Disk, full: str, what: str
) -> None:
    async with running(tmp_path, training={"rounds": 9}, server={"stay": True}) as run:
        node = await joined(run)
        await train(node)
        await node.work()
        disk.full.add(full)
        run.interrupted.set()
        assert await asyncio.wait_for(run.done, 30) == 1
    assert run.coordinator.engine.failure == f"the run's result is not on the disk: {what} could not be written"


async def broken_run(run: Running, what: str) -> None:
    engine = run.coordinator.engine
    await asyncio.wait_for(engine.finished.wait(), 30)
    assert what in engine.failure
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(run.get, "/healthz")
    with caught.value as answer:
        assert answer.code == 503
        assert what in answer.read().decode()


@pytest.mark.parametrize("method", ["add", "keep"])
async def test_a_call_on_the_compute_thread_that_fails_ends_the_run_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(GlobalModel, method, fails)
    async with running(tmp_path, server={"linger_seconds": 5.0}) as run:
        node = await joined(run)
        await train(node)
        await broken_run(run, "MemoryError: no room")
        await node.stub.Leave(pb.LeaveRequest(node_id="a", run_id=node.run_id), metadata=node.metadata)
        assert await asyncio.wait_for(run.done, 30) == 1


async def test_a_decision_that_fails_in_the_timer_ends_the_run_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as run:
        await joined(run)
        engine = run.coordinator.engine
        monkeypatch.setitem(engine.machine._handlers, ev.Tick, _raise)
        engine._tick()
        await asyncio.wait_for(engine.finished.wait(), 30)
        assert engine.failure == "the decision on Tick failed: ZeroDivisionError: oops"
        assert await asyncio.wait_for(run.done, 30) == 1


async def test_a_machine_that_cannot_even_end_the_run_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as run:
        await joined(run)
        monkeypatch.setattr(RoundMachine, "handle", _raise)
        run.coordinator.engine._tick()
        assert await asyncio.wait_for(run.done, 30) == 1


async def test_an_effect_that_fails_does_not_keep_the_others_from_being_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, training={"rounds": 1}) as run:
        node = await joined(run)
        monkeypatch.setattr(run.coordinator.engine.feed, "publish", _raise)
        order = await node.work()
        assert order.order.work.round == 1
        assert await asyncio.wait_for(run.done, 30) == 1


async def test_a_buffer_is_free_only_when_its_update_is_in_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added, may_add = threading.Event(), threading.Event()
    real = GlobalModel.add

    def add(self: GlobalModel, *update: Any) -> None:
        added.set()
        may_add.wait(30)
        real(self, *update)

    monkeypatch.setattr(GlobalModel, "add", add)
    async with running(tmp_path) as run:
        engine = run.coordinator.engine
        recycled: list[int] = []
        monkeypatch.setattr(engine.uploads, "recycle", lambda upload: recycled.append(upload.payload.nbytes))
        await train(await joined(run))
        await asyncio.to_thread(added.wait, 30)
        assert recycled == []
        may_add.set()
        await engine._background.settle()
        assert recycled == [32]


async def test_the_updates_of_an_abandoned_round_are_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path, training={"min_nodes": 2}) as run:
        a, b = await joined(run, "a"), await joined(run, "b")
        order_a, _ = await asyncio.gather(a.work(), b.work())
        await a.push(order_a, ONE)
        await run.control.Stop(pb.StopRequest(reason="enough"))
        await asyncio.wait_for(run.done, 30)
        model = run.coordinator.engine.model
        before = model.values.copy()
        assert model.step()
        assert np.array_equal(model.values, before), "nothing was left to apply"


def _raise(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("oops")
