"""Samples that each simulated node alone holds: those of the task's `local`, or a part of the task's data."""

from collections.abc import Sequence
from dataclasses import replace

from hypergpu.common.config import TrainingConfig
from hypergpu.common.data_report import DataReport, ReportedData
from hypergpu.tasks import Task
from hypergpu.tasks.local_samples import data_report, with_local_samples
from hypergpu.tasks.partition import Indices, LocalPartition, ShardOrder, dirichlet
from hypergpu.tasks.samples import Data, count, labels, part


def with_dealt_samples(task: Task, nodes: Sequence[str], config: TrainingConfig) -> Task:
    """Return a task whose training samples are dealt to these nodes once, as a Dirichlet partition would.

    A task that says itself which samples a node holds stays as it is.

    Raises:
        InvalidInput: the targets are not one class for each sample.
    """
    if task.local is not None:
        return task
    dealt = dirichlet(labels(task.train), len(nodes), config.seed, config.dirichlet_alpha)
    parts = {node: part(task.train, indices) for node, indices in zip(nodes, dealt, strict=True)}
    return replace(task, local=parts.__getitem__)


class NodeSamples:
    """Samples of each node, loaded when it first needs them.

    Args:
        task: with a function `local`.
        seed: seed of the run.
        reported: figures that nodes report.
    """

    def __init__(self, task: Task, seed: int, reported: ReportedData) -> None:
        self._task, self._seed, self._reported = task, seed, reported
        self._nodes: dict[str, tuple[Data, ShardOrder, DataReport | None]] = {}

    def take(self, node: str, cursor: int, number: int) -> tuple[Data, Indices]:
        """Return the data of a node, and the next samples of it from `cursor` on."""
        data, order, _ = self._of(node)
        return data, order.take(cursor, number)

    def report(self, node: str) -> DataReport | None:
        """Return what a node reports of its samples."""
        return self._of(node)[2]

    def _of(self, node: str) -> tuple[Data, ShardOrder, DataReport | None]:
        found = self._nodes.get(node)
        if found is None:
            data = with_local_samples(self._task, node, self._seed).train
            order = ShardOrder(LocalPartition(count(data), node, self._seed), 0)
            found = self._nodes[node] = data, order, data_report(data, self._reported)
        return found
