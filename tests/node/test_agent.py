"""The agent against a coordinator that is as unhelpful as a test wants it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from torch import nn

from hypergpu.common.errors import InvalidInput, NotAuthenticated, OutOfMemory, ProtocolError
from hypergpu.common.identity import differences
from hypergpu.common.tensors import Manifest
from hypergpu.common.wire import identity_from_proto, manifest_to_proto, step_times_from_proto
from hypergpu.node.core.gpu import GPUSpecs
from hypergpu.node.core.states import State
from hypergpu.node.device import MOST_NUMERICS
from hypergpu.node.naming import own_name
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.tasks import FlatModel, Task, build
from hypergpu.tasks.identity import identity_of
from tests.node.conftest import TASK
from tests.patience import patience

MIB = 1 << 20
DATA = torch.randn(20, 4), torch.arange(20) % 3


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("oops")


def each(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss of each sample, where their mean belongs."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


TINY = Task(model=lambda: nn.Sequential(nn.Linear(4, 100_000), nn.Linear(100_000, 3)), train=DATA, test=DATA)
"""3.6 MB, and as much again for the gradients."""


def order(round_: int, *, attempt: int = 1, local_steps: int = 2, **fields: object) -> pb.WorkOrder:
    shard = pb.Shard(index=0, count=2, cursor=8 * round_, partition="iid", seed=7)
    values: dict[str, object] = {
        "batch_size": 8,
        "learning_rate": 0.01,
        "local_optimizer": "sgd",
        "deadline_seconds": 30.0,
        "shard": shard,
        **fields,
    }
    return pb.WorkOrder(
        work=pb.WorkId(run_id="run-1", round=round_, node_id="n1", attempt=attempt),
        local_steps=local_steps,
        **values,  # type: ignore[arg-type]  # fields of the message
    )


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.005)


async def test_a_node_works_off_its_orders_and_leaves_when_the_run_is_over(cluster: Any) -> None:
    async with cluster(order(1), order(2), order(3, local_steps=1)) as c:
        await c.run()
    assert [key[0] for key in c.fake.applied] == [1, 2, 3]
    assert c.outcomes == ["accepted"] * 3
    assert c.fake.left == ["done"]
    assert c.fake.node_ids == {"n1"}  # on every call: the proxy picks the link by it
    summary = c.worker.metrics.get_training_summary()
    assert (summary["total_steps"], summary["total_samples"]) == (5, 40)
    assert c.worker.metrics.get_contribution_metrics()["success_rate"] == 1.0


async def test_the_update_depends_on_the_work_alone(cluster: Any) -> None:
    async with cluster(order(1)) as first, cluster(order(1, attempt=3)) as second:
        await first.run()
        torch.rand(5)
        await second.run()
    assert np.array_equal(first.fake.applied[1, 1], second.fake.applied[1, 3])


async def test_an_order_of_an_earlier_round_is_repeated_with_its_random_numbers(cluster: Any) -> None:
    layers = lambda: nn.Sequential(nn.Linear(16, 24_000), nn.Dropout(0.5), nn.Linear(24_000, 10))  # noqa: E731
    first = order(1)

    async def update_of(wanted: pb.WorkOrder) -> np.ndarray[Any, Any]:
        async with cluster(wanted) as c:
            c.worker._task = replace(TASK, model=layers)
            await c.run()
            applied: np.ndarray[Any, Any] = c.fake.applied[wanted.work.round, 1]
            return applied

    expected = await update_of(first)
    assert np.array_equal(await update_of(order(3, shard=first.shard, repeats_round=1, trial=True)), expected)
    assert not np.array_equal(await update_of(order(3, shard=first.shard)), expected)


async def test_a_broken_upload_goes_on_where_it_stopped(cluster: Any) -> None:
    async with cluster(order(1), break_push_after=[2, 0]) as broken, cluster(order(1)) as whole:
        await broken.run()
        await whole.run()
    total = broken.fake.model.manifest.total_bytes
    assert broken.fake.received == [(1, 0, 2 * MIB), (1, -1, 2 * MIB), (1, 2 * MIB, total)]
    assert np.array_equal(broken.fake.applied[1, 1], whole.fake.applied[1, 1])


async def test_a_lost_answer_does_not_apply_the_update_twice(cluster: Any) -> None:
    async with cluster(order(1), reply_lost=1) as c:
        await c.run()
    assert len(c.fake.received) == 1  # the second try only asked
    assert c.outcomes == ["duplicate"]


@pytest.mark.parametrize("call", ["Register", "PullWork", "PushUpdate", "GetUploadProgress", "Leave", "Heartbeat"])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.DATA_LOSS]
)
async def test_what_may_pass_is_tried_again(cluster: Any, call: str, code: grpc.StatusCode) -> None:
    fail = [(call, code)] + ([("PushUpdate", code)] if call == "GetUploadProgress" else [])
    async with cluster(order(1), order(2), fail=fail) as c:
        await c.run()
    assert len(c.fake.applied) == 2
    if call not in {"Leave", "Heartbeat"}:
        assert c.worker.metrics.get_network_summary()["total_retries"] >= 1


async def test_a_corrupt_chunk_is_fetched_again(cluster: Any) -> None:
    async with cluster(order(1), corrupt_pulls=2) as c:
        await c.run()
    assert c.fake.calls.count("PullWork") == 4
    assert len(c.fake.applied) == 1


@pytest.mark.parametrize(
    ("bad", "kind", "match"),
    [
        ({"batch_size": 0}, "InvalidInput", "at least 1"),
        ({"local_steps": 0}, "InvalidInput", "local steps"),
        ({"learning_rate": -1.0}, "InvalidInput", "learning rate"),
        ({"shard": pb.Shard(index=5, count=2, partition="iid")}, "InvalidInput", "outside the range"),
        ({"shard": pb.Shard(index=0, count=2, partition="ird")}, "UnknownName", "iid"),
        ({"shard": pb.Shard(index=0, count=99, partition="iid")}, "InvalidInput", "99 shards"),
        ({"learning_rate": 1e30, "local_steps": 9}, "NonFiniteUpdate", "step"),
        ({"manifest": pb.Manifest(dtype="float16")}, "ProtocolError", "float16"),
        ({"manifest": manifest_to_proto(Manifest(()))}, "ProtocolError", "missing"),
    ],
)
async def test_bad_work_is_handed_back_with_its_reason_and_the_node_lives_on(
    cluster: Any, bad: dict[str, object], kind: str, match: str
) -> None:
    wrong = order(1)
    for name, value in bad.items():
        getattr(wrong, name).CopyFrom(value) if hasattr(value, "DESCRIPTOR") else setattr(wrong, name, value)
    async with cluster(wrong, order(2)) as c:
        await c.run()
    ((reason, detail),) = c.fake.returned
    assert reason == kind
    assert match in detail
    assert list(c.fake.applied) == [(2, 1)]
    assert c.outcomes == [kind, "accepted"]


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_residual_enters_the_next_update_once_also_if_the_reply_was_lost(cluster: Any, lost: int) -> None:
    def ordered(round_: int, codec: str) -> pb.WorkOrder:
        return order(round_, accepted_round=round_ - 1, update=pb.Encoding(codec=codec, version=1))

    async def applied(*codecs: str, reply_lost: int = 0) -> list[np.ndarray[Any, Any]]:
        orders = [ordered(number, codec) for number, codec in enumerate(codecs, 1)]
        async with cluster(*orders, reply_lost=reply_lost) as c:
            await c.run()
            return [c.fake.applied[number, 1] for number in range(1, len(codecs) + 1)]

    exact = await applied("none", "none")
    compressed = await applied("topk", "none", reply_lost=lost)
    residual = np.float32(0.95) * (exact[0] - compressed[0])
    assert np.linalg.norm(residual) > 0.5 * np.linalg.norm(exact[0])
    np.testing.assert_allclose(compressed[1], exact[1] + residual, rtol=1e-4, atol=1e-7)


async def test_the_state_of_the_optimizer_is_kept_if_the_update_was_accepted(cluster: Any) -> None:
    """The second update, by whether the state is kept, and by the round that was accepted last."""

    async def second(accepted_round: int, *, keeps_state: bool = True) -> np.ndarray[Any, Any]:
        how: dict[str, Any] = {"local_optimizer": "adamw", "local": pb.LocalSettings(keeps_state=keeps_state)}
        async with cluster(order(1, **how), order(2, accepted_round=accepted_round, **how)) as c:
            await c.run()
            applied: np.ndarray[Any, Any] = c.fake.applied[2, 1]
            return applied

    kept, reset = await second(1), await second(1, keeps_state=False)
    assert np.abs(kept - reset).max() > 1e-3
    np.testing.assert_array_equal(await second(0), reset)


async def test_an_order_whose_local_steps_cannot_be_is_handed_back(cluster: Any) -> None:
    async with cluster(order(1, local=pb.LocalSettings(momentum=2.0)), order(2)) as c:
        await c.run()
    ((_, detail),) = c.fake.returned
    assert "a local momentum of 2.0 is outside the range" in detail
    assert list(c.fake.applied) == [(2, 1)]


async def test_a_restarted_coordinator_is_joined_again(cluster: Any) -> None:
    async with cluster(order(1), keep_open=True) as c:
        running = asyncio.create_task(c.run())
        await until(lambda: len(c.fake.applied) == 1)
        c.fake.run_id = "run-2"
        c.fake.directives.append(pb.HeartbeatReply.REGISTER_AGAIN)
        # It knows the run before it has joined, and one that is stopped in between has nothing to leave.
        await until(lambda: c.agent.run_id == "run-2" and c.agent.state is not State.JOINING)
        c.agent.stop("test")
        await running
    assert c.fake.left == ["test"]


async def test_a_node_waits_for_the_next_run_of_a_coordinator_that_stays(cluster: Any) -> None:
    async with cluster(order(1), stays=True) as c:
        running = asyncio.create_task(c.run())
        await until(lambda: c.fake.calls.count("PullWork") >= 4)
        assert not running.done()
        assert c.fake.left == []
        c.fake.run_id = "run-2"
        c.fake.directives.append(pb.HeartbeatReply.REGISTER_AGAIN)
        await until(lambda: c.agent.run_id == "run-2")
        c.fake.stays = False  # not before: it would end with the first run
        await asyncio.wait_for(running, patience(30))
    assert c.agent.run_id == "run-2"
    assert c.fake.left == ["done"]


async def test_a_coordinator_that_is_not_there_is_looked_for_until_it_is(
    cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async with cluster(order(1), listen=False) as c:
        running = asyncio.create_task(c.run())
        await until(lambda: c.agent.state is State.BACKING_OFF)
        await c.fake.start(c.agent._client.address)
        await running
    assert len(c.fake.applied) == 1
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert "connecting to the coordinator" in said
    assert f"address={c.agent._client.address}" in said.replace("'", "")
    assert "joined" in said


async def test_stopping_in_mid_work_finishes_it(cluster: Any) -> None:
    async with cluster(order(1, local_steps=60), order(2)) as c:
        running = asyncio.create_task(c.run())
        await until(lambda: c.agent.state is State.TRAINING)
        c.agent.stop("SIGTERM")
        await running
    assert list(c.fake.applied) == [(1, 1)]
    assert c.fake.left == ["SIGTERM"]


async def test_stopping_hands_back_what_does_not_fit_the_grace_period(cluster: Any) -> None:
    async with cluster(order(1, local_steps=100_000), grace=0.05) as c:
        running = asyncio.create_task(c.run())
        await until(lambda: c.agent.state is State.TRAINING)
        c.agent.stop("SIGTERM")
        await running
    assert c.fake.returned[0][0] == "shutting_down"
    assert (c.fake.left, c.fake.applied) == (["SIGTERM"], {})


async def test_abandoned_work_is_dropped_within_a_step(cluster: Any) -> None:
    async with cluster(order(1, local_steps=100_000), keep_open=True) as c:
        running = asyncio.create_task(c.run())
        await until(lambda: "training" in c.fake.states)
        c.fake.orders.clear()
        c.fake.directives.append(pb.HeartbeatReply.ABANDON_WORK)
        await until(lambda: c.agent.state is State.IDLE)
        c.fake.directives.append(pb.HeartbeatReply.SHUT_DOWN)
        await running
    assert c.fake.applied == {}


async def test_the_coordinator_learns_the_largest_batch_as_soon_as_the_model_is_known(cluster: Any) -> None:
    async with cluster(order(1)) as c:
        await c.run()
    assert c.fake.largest_batches == [0, c.worker.largest_batch]


async def test_the_coordinator_learns_the_step_times_as_soon_as_the_model_is_known(cluster: Any) -> None:
    async with cluster(order(1)) as c:
        await c.run()
    before, after = c.fake.step_times
    assert before is None
    assert step_times_from_proto(after) == c.worker.step_times


async def test_the_coordinator_learns_on_what_kind_of_machine_a_node_computes(cluster: Any) -> None:
    async with cluster(order(1)) as c:
        await c.run()
    before, after = c.fake.numerics
    assert before == ""
    assert after == c.worker.numerics
    assert after.startswith(f"torch {torch.__version__}, ")
    assert f"{torch.get_num_threads()} threads" in after
    assert len(after) <= MOST_NUMERICS


@pytest.mark.parametrize(
    ("task", "error", "match"),
    [
        (Task(model=lambda: nn.Linear(9, 9), train=DATA, test=DATA), InvalidInput, "does not take samples"),
        (Task(model=Raises, train=DATA, test=DATA), InvalidInput, "KeyError: 'oops'"),
        (Task(model=lambda: nn.Linear(4, 3), train=DATA, test=DATA, loss=each), InvalidInput, "mean over the batch"),
        (TINY, OutOfMemory, "not even the model fits"),
    ],
)
async def test_a_task_that_cannot_be_trained_ends_the_node_and_the_coordinator_is_told(
    cluster: Any, task: Task, error: type[Exception], match: str
) -> None:
    async with cluster() as c:
        c.worker._task = task
        c.worker.specs = GPUSpecs("small", 2_000_000 if task is TINY else 1 << 30)
        c.fake.model = build(task, 0)
        with pytest.raises(error, match=match):
            await c.run()
    assert error.__name__ in c.fake.left[0]


async def test_a_wrong_token_ends_the_node_with_the_reason(cluster: Any) -> None:
    async with cluster(fail=[("Register", grpc.StatusCode.UNAUTHENTICATED)]) as c:
        with pytest.raises(NotAuthenticated, match="as the test wants it"):
            await c.run()


async def test_a_node_loads_no_code_but_its_own(cluster: Any) -> None:
    async with cluster(task="evil.module:run") as c:
        with pytest.raises(InvalidInput, match=r"--task evil\.module:run"):
            await c.run()
        assert "InvalidInput" in c.fake.left[0]


async def test_another_model_than_the_coordinators_is_told_by_its_tensors(cluster: Any) -> None:
    async with cluster() as c:
        c.fake.model = FlatModel(nn.Linear(2, 2))
        with pytest.raises(ProtocolError, match="missing 'weight'"):
            await c.run()


async def test_the_identity_of_the_task_is_said_once_it_is_known(cluster: Any) -> None:
    async with cluster(order(1)) as c:
        await c.run()
        assert c.fake.identities[0] is None
        task, seed = c.worker.trainer.task, c.fake.seed
        said = c.fake.identities[-1]
        assert said is not None
        assert differences(identity_of(task, build(task, seed), seed), identity_from_proto(said)) == []


async def test_other_data_than_the_coordinators_is_told_with_both_figures(cluster: Any) -> None:
    async with cluster(order(1)) as c:
        c.fake.identity = pb.TaskIdentity(train_samples=99, test_samples=20)
        with pytest.raises(InvalidInput, match=r"differs from the coordinator's: 60 train samples here, 99"):
            await c.run()
        assert "PullWork" not in c.fake.calls
        assert "Leave" in c.fake.calls


def test_nodes_name_themselves_before_they_dial() -> None:
    names = {own_name() for _ in range(20)}
    assert len(names) == 20
    assert all(name.replace("-", "").replace("_", "").isalnum() and len(name) <= 64 for name in names)


async def test_a_node_is_heard_of_while_it_prepares(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(order(1)) as c:
        prepare = c.worker.prepare

        def slowly(task: str, seed: int, partition: str) -> None:
            time.sleep(0.3)  # on the training thread
            prepare(task, seed, partition)

        monkeypatch.setattr(c.worker, "prepare", slowly)
        await c.run()
    assert "preparing" in c.fake.states


async def test_heartbeats_go_on_after_an_error_that_nobody_expected(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(order(1), keep_open=True) as c:
        encode = c.worker.metrics.encode_report
        errors = [ZeroDivisionError("oops")]

        def encode_report() -> bytes:
            if errors:
                raise errors.pop()
            report: bytes = encode()
            return report

        monkeypatch.setattr(c.worker.metrics, "encode_report", encode_report)
        running = asyncio.create_task(c.run())
        await until(lambda: bool(c.fake.states))
        c.agent.stop("test over")
        await running
    assert errors == []
