"""A task: everything that a user has to say about what is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hypergpu.common.errors import InvalidInput
from hypergpu.tasks.memory import in_batches
from hypergpu.tasks.metrics import Metric, Score, Tally
from hypergpu.tasks.samples import Data, count, fetch

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> mean loss over the batch, a scalar."""


@dataclass(frozen=True)
class Task:
    """What to train, on what, and what counts as good.

    >>> x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
    >>> Task(model=lambda: nn.Linear(3, 2), train=(x[:15], y[:15]), test=(x[15:], y[15:])).name
    'task'
    """

    model: Callable[[], nn.Module]
    """Makes a fresh model; its parameters are float32. Called under a fixed seed."""
    train: Data
    """The samples to learn from: `(inputs, targets)` as tensors or arrays, or a map-style Dataset of such pairs."""
    test: Data
    """Held-out samples, of the same form."""
    loss: Loss = functional.cross_entropy
    """(outputs, targets) -> mean loss over the batch, a scalar."""
    accuracy: Score | None = None
    """(outputs, targets) -> mean score over the batch, a plain number of which more is better. Left out: the share of
    right classes where outputs tell classes apart, and nothing but the loss where they don't (a regression)."""
    metric: Metric | None = None
    """In the place of `accuracy`: a metric with a name, a direction and a format, or one over the whole test set."""
    name: str = "task"
    """Shown in status and reports."""
    target: float | None = None
    """The value of the metric on held-out data that a run of the documented length reaches: any real number."""

    def __post_init__(self) -> None:
        for what, data in (("train", self.train), ("test", self.test)):
            if count(data) == 0:
                raise InvalidInput(f"task {self.name!r} has no {what} samples")
        if self.accuracy is not None and self.metric is not None:
            raise InvalidInput(f"task {self.name!r} has an accuracy and a metric; give one of them")
        if self.target is not None and not math.isfinite(self.target):
            raise InvalidInput(f"the target of task {self.name!r} is {self.target}; give a finite number, or None")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on held-out samples."""

    loss: float
    metric: float | None
    """The task's metric; None where it is undefined, or the task has none."""
    samples: int
    batch_size: int
    """Samples that were taken at once in the end: fewer than asked for where memory ran out."""
    fault: str = ""
    """Why the metric could not be computed."""


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, *, batch_size: int = 64) -> Evaluation:
    """Mean loss and the metric over all of `task.test`, in batches that weigh by their size.

    A metric that fails is undefined, with its fault; the loss is told nevertheless. The model is left in the mode
    (train or eval) that it was in.

    Args:
        model: on any device.
        task: with its held-out samples.
        batch_size: samples to take at once; halved where memory runs out, down to 1.
    """
    was_training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    total = count(task.test)
    loss, tally = 0.0, Tally(task)

    def take(start: int, size: int) -> None:
        nonlocal loss
        inputs, targets = fetch(task.test, range(start, start + size), device)
        outputs = model(inputs)
        batch_loss = float(task.loss(outputs, targets))
        tally.add(outputs, targets, size)
        loss += size * batch_loss  # last: a batch that memory does not hold is taken again, in halves

    try:
        batch_size = in_batches(total, batch_size, take)
    finally:
        model.train(was_training)
    return Evaluation(loss / total, tally.value(), total, batch_size, tally.fault)
