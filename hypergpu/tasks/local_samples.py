"""Samples that one node alone holds: `Task.local`, with `training.partition: local`."""

from dataclasses import replace

import numpy as np

from hypergpu.common.data_report import MAX_CLASSES, DataReport, ReportedData
from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.tasks.base import Task
from hypergpu.tasks.samples import Data, count, labels
from hypergpu.tasks.seeding import seeded


def require_partition(task: Task, partition: str) -> None:
    """Check that a task has the samples that `training.partition` is about.

    Raises:
        InvalidInput: it has not; the message says what to change.
    """
    if partition == "local" and task.local is None:
        raise InvalidInput(
            f"training.partition is local, and task {task.name!r} does not say which samples a node holds: give it "
            "`local`, a function of the node id, or choose another partition"
        )
    if partition != "local" and count(task.train) == 0:
        raise InvalidInput(
            f"training.partition is {partition}, and task {task.name!r} has no samples that all nodes share, only "
            "those of `local`: choose training.partition=local, or give it `train`"
        )


def with_local_samples(task: Task, node_id: str, seed: int) -> Task:
    """Return the task with the samples of one node as its training samples.

    Args:
        task: with a function `local`.
        node_id: the node.
        seed: seed of that function's random numbers.

    Raises:
        InvalidInput: the task has no `local`, it raised, or it returned no samples.
    """
    require_partition(task, "local")
    assert task.local is not None
    try:
        with seeded(seed):
            data = task.local(node_id)
        samples = count(data)
    except HyperGPUError as error:
        raise InvalidInput(f"the samples of node {node_id} for task {task.name!r}: {error}") from error
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InvalidInput(f"`local` of task {task.name!r} raised for node {node_id}: {told}") from error
    if samples == 0:
        raise InvalidInput(
            f"node {node_id} holds no samples of task {task.name!r}: with training.partition local, each node needs "
            "its own. Mount its data, or start it with the --id of a node that has some"
        )
    return replace(task, train=data)


def data_report(data: Data, figures: ReportedData) -> DataReport | None:
    """Return what a node reports of its samples; None if it reports nothing.

    Raises:
        InvalidInput: classes are asked for, and the targets are not one class for each sample.
    """
    if figures == "none":
        return None
    if figures == "count":
        return DataReport(count(data))
    try:
        classes, counts = np.unique(labels(data), return_counts=True)
    except InvalidInput as error:
        raise InvalidInput(f"node.report_data is classes, and there are none: set it to count. {error}") from error
    if len(classes) > MAX_CLASSES:
        return DataReport(count(data))
    return DataReport(count(data), dict(zip(classes.tolist(), counts.tolist(), strict=True)))
