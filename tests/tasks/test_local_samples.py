"""Samples that one node alone holds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypergpu.common.data_report import DataReport
from hypergpu.common.errors import InvalidInput
from hypergpu.common.identity import differences
from hypergpu.tasks import Task, build
from hypergpu.tasks.base import NO_SAMPLES
from hypergpu.tasks.fingerprint import fingerprint
from hypergpu.tasks.identity import identity_of
from hypergpu.tasks.local_samples import data_report, require_partition, with_local_samples
from hypergpu.tasks.partition import LocalPartition, ShardOrder
from hypergpu.tasks.samples import Data

Samples = tuple[Tensor, Tensor]
X, Y = torch.arange(30.0).reshape(10, 3), torch.tensor([0, 1, 1, 0, 1, 1, 0, 1, 1, 1])


def own(node_id: str) -> Samples:
    part = int(node_id[-1]) == Y
    return X[part], Y[part]


def task(local: Callable[[str], Samples] | None = own, train: Data = NO_SAMPLES) -> Task:
    return Task(model=lambda: nn.Linear(3, 2), train=train, local=local, test=(X, Y))


def test_a_task_may_have_samples_of_nodes_alone() -> None:
    held = with_local_samples(task(), "site_1", 0).train
    assert isinstance(held, tuple)
    assert torch.equal(torch.as_tensor(held[1]), torch.ones(7, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="no train samples"):
        task(local=None)


def test_the_partition_of_a_run_is_one_that_the_task_has_samples_for() -> None:
    shared = task(local=None, train=(X, Y))
    require_partition(shared, "dirichlet")
    require_partition(task(), "local")
    require_partition(task(train=(X, Y)), "iid")
    with pytest.raises(InvalidInput, match="does not say which samples a node holds: give it `local`"):
        require_partition(shared, "local")
    with pytest.raises(InvalidInput, match=r"choose training.partition=local"):
        require_partition(task(), "iid")


def test_a_node_without_samples_is_told_which_node_and_what_to_do() -> None:
    with pytest.raises(InvalidInput, match=r"node site_7 holds no samples of task 'task'.*start it with the --id"):
        with_local_samples(task(), "site_7", 0)
    with pytest.raises(InvalidInput, match="`local` of task 'task' raised for node nowhere: ValueError: invalid lit"):
        with_local_samples(task(), "nowhere", 0)


def test_random_samples_of_a_node_follow_the_seed() -> None:
    def drawn(node_id: str) -> Samples:
        return torch.randn(4, 3), torch.ones(4, dtype=torch.int64)

    one, same, other = (with_local_samples(task(drawn), "a", seed).train for seed in (1, 1, 2))
    assert isinstance(one, tuple)
    assert isinstance(same, tuple)
    assert isinstance(other, tuple)
    assert torch.equal(torch.as_tensor(one[0]), torch.as_tensor(same[0]))
    assert not torch.equal(torch.as_tensor(one[0]), torch.as_tensor(other[0]))


def test_only_what_is_asked_for_is_reported() -> None:
    assert data_report((X, Y), "none") is None
    assert data_report((X, Y), "count") == DataReport(10)
    assert data_report((X, Y), "classes") == DataReport(10, {0: 3, 1: 7})
    with pytest.raises(InvalidInput, match=r"node.report_data is classes, and there are none: set it to count"):
        data_report((X, torch.randn(10)), "classes")
    many = torch.arange(1001)
    assert data_report((torch.zeros(1001, 1), many), "classes") == DataReport(1001)


def test_nodes_with_different_samples_have_the_same_identity() -> None:
    def identity(each: Task) -> object:
        return identity_of(each, build(each, 0), 0, is_local=True)

    one, other = (with_local_samples(task(), node, 0) for node in ("site_0", "site_1"))
    assert identity(one) == identity(other) == identity(task())
    wider = Task(model=lambda: nn.Linear(3, 3), local=own, test=(X, Y))
    assert identity(wider) != identity(task())
    changed = Task(model=lambda: nn.Linear(3, 2), local=own, test=(X + 1, Y))
    found = differences(*(identity_of(each, build(each, 0), 0, is_local=True) for each in (task(), changed)))
    assert any("test inputs" in difference for difference in found)
    assert fingerprint(one, is_local=True) == fingerprint(other, is_local=True)
    assert fingerprint(one) != fingerprint(other)


def test_each_node_has_its_own_order_and_each_sample_once_an_epoch() -> None:
    orders = [ShardOrder(LocalPartition(20, node, 3), 0).take(0, 40) for node in ("a", "a", "b")]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    for epoch in (orders[0][:20], orders[0][20:]):
        assert sorted(epoch.tolist()) == list(range(20))
    assert not np.array_equal(orders[0][:20], orders[0][20:])
    assert np.array_equal(ShardOrder(LocalPartition(20, "a", 3), 0).take(27, 5), orders[0][27:32])
