"""Updates that would ruin the model, and stops at every moment of a round: what is saved is a whole number of steps."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hypergpu.common.errors import ConfigError
from hypergpu.common.tensors import Flat, chunks
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.held_out import HeldOut
from hypergpu.export import export_model
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.report.headline import figures
from hypergpu.report.run import read_run
from tests.coordinator.test_services import FakeNode, running

ONE = np.ones(8, np.float32)
POISON = np.array([1, 1, 1, -1, -1, -1, 1, -1], np.float32) * np.float32(1e30)


def checkpoints(run: Path) -> Iterator[tuple[int, Flat]]:
    """Number and content of each checkpoint: the model's tensors one after the other."""
    for file in sorted((run / "checkpoints").glob("round-*.safetensors")):
        tensors = load_file(file)
        yield int(file.stem.partition("-")[2]), np.concatenate([tensors[name].ravel() for name in ("weight", "bias")])


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


async def test_a_poisoned_update_is_refused_named_and_leaves_no_trace(tmp_path: Path) -> None:
    training = {"rounds": 4, "min_nodes": 2, "quorum": 1.0}  # a deadline that passes on a busy machine is extended
    async with running(tmp_path, training=training, orchestrator={"policy": "conservative"}) as run:
        a, b = run.node("a"), run.node("b")
        await a.register()
        await b.register()
        for _ in range(2):
            for_a, for_b = await asyncio.gather(a.work(), b.work())
            assert await a.push(for_a, ONE) == await b.push(for_b, ONE) == pb.PushUpdateReply.ACCEPTED
        order_a, order_b = await asyncio.gather(a.work(), b.work())
        reply = await b.push_parts([b.header(order_b.order), *chunks(POISON)])
        assert reply.outcome == pb.PushUpdateReply.REFUSED
        assert "the update of b: norm 2.828e+30" in reply.detail
        assert await a.push(order_a, ONE) == pb.PushUpdateReply.ACCEPTED
        last, last_of_b = await asyncio.gather(a.work(), b.work())
        moved = 1 + 1 / 2 + 1 / 4  # the policy's momentum of ½ remembers both rounds before
        np.testing.assert_allclose(last.parameters, order_a.parameters + moved, rtol=1e-6)
        assert 'hypergpu_updates_total{outcome="refused"} 1.0' in run.get("/metrics")
        decisions = (await run.control.GetStatus(pb.GetStatusRequest())).decisions
        assert ("b", "norm_too_large") in {(each.subject, each.reason) for each in decisions}
        assert await a.push(last, ONE) == await b.push(last_of_b, ONE) == pb.PushUpdateReply.ACCEPTED
        await asyncio.wait_for(run.coordinator.engine.finished.wait(), 30)
    assert all(np.isfinite(content).all() and abs(content).max() < 100 for _, content in checkpoints(tmp_path))
    assert "update_refused" in [event["kind"] for event in events(tmp_path)]


async def test_poison_before_any_norm_is_known_costs_one_round_and_not_the_run(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 2}, checkpoint={"every": 1}) as run:
        a = run.node("a")
        await a.register()
        first = await a.work()
        assert await a.push(first, POISON) == pb.PushUpdateReply.ACCEPTED
        second = await a.work()
        np.testing.assert_array_equal(second.parameters, first.parameters)
        await a.push(second, ONE)
        assert await asyncio.wait_for(run.done, 30) == 0
    assert [number for number, _ in checkpoints(tmp_path)] == [1, 2]
    for number, content in checkpoints(tmp_path):
        np.testing.assert_allclose(content, first.parameters + (number - 1), rtol=1e-6)
    texts = [event["text"] for event in events(tmp_path) if event["kind"] == "model_reverted"]
    assert len(texts) == 1
    assert texts[0].startswith("loss is ")
    assert texts[0].endswith("e+30 after round 1; reverting to the initial parameters")


async def test_a_run_that_diverges_for_good_ends_with_the_last_good_model_and_a_code(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 50}, checkpoint={"every": 1}) as run:
        a = run.node("a")
        await a.register()
        good = await a.work()
        await a.push(good, ONE)
        for _ in range(3):
            await a.push(await a.work(), POISON)
        assert await asyncio.wait_for(run.done, 30) == 1
    assert json.loads((tmp_path / "summary.json").read_text())["reason"] == "diverged"
    for _, content in checkpoints(tmp_path):
        np.testing.assert_allclose(content, good.parameters + 1, rtol=1e-6)


async def test_all_final_figures_are_those_of_the_model_that_is_kept_if_the_last_round_is_given_up(
    tmp_path: Path,
) -> None:
    training = {"rounds": 2}
    server = {"stay": True}
    async with running(tmp_path, training=training, server=server, orchestrator={"policy": "reactive"}) as run:
        a = run.node("a")
        await a.register()
        await a.push(await a.work(), ONE)
        await a.push(await a.work(), 20 * np.sign(POISON))
        await asyncio.wait_for(run.coordinator.engine.finished.wait(), 30)
        status = await run.control.GetStatus(pb.GetStatusRequest())
        gauge = float(re.search("^hypergpu_loss (.*)$", run.get("/metrics"), re.M)[1])  # type: ignore[index]
        await run.control.Restart(pb.RestartRequest())
    kept, given_up = (json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines())
    assert given_up["loss"] > 2 * kept["loss"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    stated = {
        "summary": summary["final_loss"],
        "status": status.loss,
        "gauge": gauge,
        "report": figures(read_run(tmp_path))["loss"],
        "result": export_model(tmp_path, "last", tmp_path / "out.safetensors").to_dict()["loss"],
        "checkpoint": export_model(tmp_path, "2", tmp_path / "out.safetensors").to_dict()["loss"],
    }
    assert stated == dict.fromkeys(stated, pytest.approx(kept["loss"]))


async def test_after_a_rollback_gradients_are_applied_at_the_lower_rate(tmp_path: Path) -> None:
    training = {"rounds": 3, "local_steps": 1, "learning_rate": 0.5}
    async with running(tmp_path, training=training, orchestrator={"policy": "reactive"}) as run:
        a = run.node("a")
        await a.register()
        first = await a.work()
        assert await a.push(first, ONE) == pb.PushUpdateReply.ACCEPTED
        good = await a.work()
        np.testing.assert_allclose(good.parameters, first.parameters - 0.5, rtol=1e-6)
        assert await a.push(good, 20 * np.sign(POISON)) == pb.PushUpdateReply.ACCEPTED
        again = await a.work()
        np.testing.assert_array_equal(again.parameters, good.parameters)
        assert (good.order.learning_rate, again.order.learning_rate) == (0.5, 0.25)
        await a.push(again, ONE)
        assert await asyncio.wait_for(run.done, 30) == 0
    tensors = load_file(tmp_path / "model.safetensors")
    last = np.concatenate([tensors[name].ravel() for name in ("weight", "bias")])
    np.testing.assert_allclose(last, good.parameters - 0.25, rtol=1e-6)


class Gate:
    """Holds up a call on the compute thread until it is let go."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.open.wait(30)


@pytest.fixture(params=["step", "evaluation"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Hold the second round where its step is taken, or where it is evaluated."""
    gate, count = Gate(), [0]

    def counted() -> None:
        count[0] += 1
        if count[0] == 2:
            gate.wait()

    if request.param == "step":
        step = GlobalModel.step

        def held_step(self: GlobalModel, *rates: Any) -> bool:
            counted()
            return step(self, *rates)

        monkeypatch.setattr(GlobalModel, "step", held_step)
    else:
        evaluate = HeldOut.evaluate

        def held_evaluation(self: HeldOut, values: Flat) -> Any:
            counted()
            return evaluate(self, values)

        monkeypatch.setattr(HeldOut, "evaluate", held_evaluation)
    return gate


async def two_rounds(a: FakeNode, gate: Gate) -> Flat:
    await a.register()
    first = await a.work()
    await a.push(first, ONE)
    await a.push(await a.work(), ONE)
    await asyncio.to_thread(gate.reached.wait, 30)
    return first.parameters


async def resumed_at(tmp_path: Path, start: Flat) -> None:
    """A resumed run goes on with as many steps as its round says."""
    async with running(tmp_path, resume=True, training={"rounds": 9}) as run:
        a = run.node("a")
        await a.register()
        order = await a.work()
        np.testing.assert_allclose(order.parameters, start + (order.order.work.round - 1), rtol=1e-6)
        assert order.order.work.round == 3


@pytest.mark.parametrize("how", ["stop", "signal"])
async def test_a_stop_while_a_round_is_closed_saves_whole_rounds(tmp_path: Path, held: Gate, how: str) -> None:
    training = {"rounds": 9}
    async with running(tmp_path, training=training, server={"stay": True}) as run:
        start = await two_rounds(run.node("a"), held)
        engine = run.coordinator.engine
        if how == "stop":
            engine.dispatch(ev.Stop("enough"))
            assert not engine.finished.is_set()
            held.open.set()
            await asyncio.wait_for(engine.finished.wait(), 30)
            run.interrupted.set()
        else:
            run.interrupted.set()
            await asyncio.sleep(0)
            held.open.set()
        assert await asyncio.wait_for(run.done, 30) == 0
    for number, content in checkpoints(tmp_path):
        np.testing.assert_allclose(content, start + number, rtol=1e-6)
    rows = [json.loads(line)["round"] for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert rows == [1, 2]
    await resumed_at(tmp_path, start)


async def test_a_model_above_the_bound_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the model takes 32 bytes and server\.max_model_bytes is 31"):
        async with running(tmp_path, server={"max_model_bytes": 31}):
            pass
    async with running(tmp_path, server={"max_model_bytes": 32}) as run:
        await run.node("a").register()


async def test_an_error_that_all_nodes_share_ends_the_run_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        a = run.node("a")
        await a.register()
        for _ in range(9):
            order = await a.work(wait=20.0)
            returned = pb.ReturnWorkRequest(
                work=order.order.work, reason="InvalidInput", detail="one sample is too few"
            )
            await a.stub.ReturnWork(returned, metadata=a.metadata)
        assert await asyncio.wait_for(run.done, 30) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["state"], summary["reason"]) == ("stopped", "failed")
    told = events(tmp_path)[-1]["text"]
    assert told.endswith(
        "every node failed with the same error in round 1, 3 times in a row: InvalidInput: one sample is too few"
    )


async def test_a_robust_rule_bears_poison_that_no_bound_refuses(tmp_path: Path) -> None:
    robust = {"rule": "trimmed_mean", "byzantine": 1, "buckets": 5}
    training = {"rounds": 2, "min_nodes": 5}
    async with running(tmp_path, training=training, aggregation=robust) as run:
        nodes = [run.node(name) for name in "abcde"]
        for node in nodes:
            await node.register()
        works = await asyncio.gather(*(node.work() for node in nodes))
        updates = [POISON, ONE, ONE, ONE, ONE]
        for node, order, update in zip(nodes, works, updates, strict=True):
            assert await node.push(order, update) == pb.PushUpdateReply.ACCEPTED
        last = await asyncio.gather(*(node.work() for node in nodes[1:]))
        np.testing.assert_allclose(last[0].parameters, works[0].parameters + 1, rtol=1e-6)
    assert [each["node"] for each in events(tmp_path) if each["kind"] == "node_suspected"] == ["a"]


async def test_poison_in_the_first_round_of_several_nodes_is_found_and_named_before_it_is_used(tmp_path: Path) -> None:
    async with running(tmp_path, training={"rounds": 2, "min_nodes": 4}) as run:
        nodes = [run.node(name) for name in "abcd"]
        for node in nodes:
            await node.register()
        works = await asyncio.gather(*(node.work() for node in nodes))
        for node, order, update in zip(nodes, works, [POISON, ONE, ONE, ONE], strict=True):
            assert await node.push(order, update) == pb.PushUpdateReply.ACCEPTED
        last = await asyncio.gather(*(node.work() for node in nodes[1:]))
        np.testing.assert_array_equal(last[0].parameters, works[0].parameters)
        decisions = (await run.control.GetStatus(pb.GetStatusRequest())).decisions
        assert ("a", "too_long") in {(each.subject, each.reason) for each in decisions}
        for node, order in zip(nodes[1:], last, strict=True):
            assert await node.push(order, ONE) == pb.PushUpdateReply.ACCEPTED
        assert await asyncio.wait_for(run.done, 30) == 0
    texts = [each["text"] for each in events(tmp_path) if each["kind"] == "step_skipped"]
    assert texts == ["skipped the step of round 1: the mean contains what a sent"]
