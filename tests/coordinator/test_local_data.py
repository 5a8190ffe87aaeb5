"""What the coordinator knows of the samples that nodes alone hold."""

from pathlib import Path

import grpc
import pytest
import torch
from torch import nn

from hypergpu.common.config import SystemConfig, TrainingConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.core.rounds.local_shards import LocalShards
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.tasks import Task
from tests.coordinator.test_services import code_of, running, toy_task

OWN = SystemConfig(training=TrainingConfig(partition="local", rounds=1))


def own_task() -> Task:
    def never(node_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError(f"the coordinator asks for the samples of {node_id!r}")

    return Task(model=lambda: nn.Linear(3, 2), local=never, test=toy_task().test)


def test_the_coordinator_needs_no_training_samples_and_says_what_a_task_lacks(tmp_path: Path) -> None:
    made = Coordinator(OWN, own_task(), Options(tmp_path / "own"))
    assert isinstance(made.engine.machine.shards, LocalShards)
    assert made.engine.identity is not None
    assert (made.engine.identity.train_samples, made.engine.identity.train_digest) == (0, "")
    with pytest.raises(InvalidInput, match="does not say which samples a node holds"):
        Coordinator(OWN, toy_task(), Options(tmp_path / "shared"))
    with pytest.raises(InvalidInput, match=r"choose training.partition=local"):
        Coordinator(SystemConfig(), own_task(), Options(tmp_path / "iid"))


async def test_what_a_node_reports_is_checked_and_shown(tmp_path: Path) -> None:
    async with running(tmp_path, task=own_task(), training={"partition": "local"}) as run:
        a = run.node("a")
        classes = [pb.ClassCount(label=label, samples=samples) for label, samples in ((3, 10), (-1, 30))]
        reply = await a.register(data=pb.DataReport(samples=40, classes=classes))
        assert reply.partition == "local"
        await run.node("b").register()
        nodes = {node.node_id: node for node in (await run.control.ListNodes(pb.ListNodesRequest())).nodes}
        assert nodes["a"].data.samples == 40
        assert {each.label: each.samples for each in nodes["a"].data.classes} == {3: 10, -1: 30}
        assert not nodes["b"].HasField("data")
        assert nodes["b"].samples_used == 0
        many = [pb.ClassCount(label=label, samples=1) for label in range(1001)]
        for data, fault in (
            (pb.DataReport(), "a node that holds 0 samples"),
            (pb.DataReport(samples=1 << 41), "expected 1 to"),
            (pb.DataReport(samples=1001, classes=many), "1001 classes; 1000 are allowed"),
            (pb.DataReport(samples=41, classes=classes), "do not add up to its 41 samples"),
            (pb.DataReport(samples=20, classes=[classes[0], classes[0]]), "do not add up"),
        ):
            code, text = await code_of(run.node("c").register(data=data))
            assert code is grpc.StatusCode.ABORTED
            assert fault in text
        assert run.coordinator.engine.machine.members.get("c") is None
