"""A task: everything that a user has to say about what is trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import InvalidInput
from tasks.memory import in_batches
from tasks.samples import Data, count, fetch

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> mean loss over the batch, a scalar."""

Accuracy = Callable[[Tensor, Tensor], Tensor | float]
"""(outputs, targets) -> mean score over the batch; more is better."""


def share_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of targets that have the largest output; classes are dimension 1, as in `cross_entropy`."""
    return (outputs.argmax(1) == targets).float().mean()


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
    accuracy: Accuracy = share_correct
    """(outputs, targets) -> mean score over the batch; more is better."""
    name: str = "task"
    """Shown in status and reports."""
    target: float | None = None
    """The held-out accuracy that a run of the documented length reaches."""

    def __post_init__(self) -> None:
        for what, data in (("train", self.train), ("test", self.test)):
            if count(data) == 0:
                raise InvalidInput(f"task {self.name!r} has no {what} samples")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on held-out samples."""

    loss: float
    accuracy: float
    samples: int
    batch_size: int
    """Samples that were taken at once in the end: fewer than asked for where memory ran out."""


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, *, batch_size: int = 64) -> Evaluation:
    """Mean loss and accuracy over all of `task.test`, in batches that weigh by their size.

    The model is left in the mode (train or eval) that it was in.

    Args:
        model: on any device.
        task: with its held-out samples.
        batch_size: samples to take at once; halved where memory runs out, down to 1.
    """
    was_training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    total = count(task.test)
    loss = accuracy = 0.0

    def take(start: int, size: int) -> None:
        nonlocal loss, accuracy
        inputs, targets = fetch(task.test, range(start, start + size), device)
        outputs = model(inputs)
        batch_loss, score = float(task.loss(outputs, targets)), float(task.accuracy(outputs, targets))
        loss += size * batch_loss
        accuracy += size * score

    try:
        batch_size = in_batches(total, batch_size, take)
    finally:
        model.train(was_training)
    return Evaluation(loss / total, accuracy / total, total, batch_size)
