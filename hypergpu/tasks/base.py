"""Tasks: all that a user defines about the training, and evaluation on held-out data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from hypergpu.common.errors import InvalidInput
from hypergpu.tasks.inputs import call, from_reduced
from hypergpu.tasks.memory import in_batches
from hypergpu.tasks.metrics import Metric, Score, Tally
from hypergpu.tasks.samples import Collate, Data, count, fetch

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> mean loss over the batch, a scalar."""
NO_SAMPLES: Data = (torch.empty(0), torch.empty(0))
"""Data without samples."""
LocalSamples = Callable[[str], Data]
"""Node id -> training samples that this node alone holds."""
MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
"""(parameters, learning rate) -> optimizer of a node's local steps, such as the class `torch.optim.RMSprop`."""


@dataclass(frozen=True)
class Task:
    """Model, data, loss and metric of a training.

    >>> x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
    >>> Task(model=lambda: nn.Linear(3, 2), train=(x[:15], y[:15]), test=(x[15:], y[15:])).name
    'task'
    """

    model: Callable[[], nn.Module]
    """Returns a new model, with parameters of float32, bfloat16 or float16. Called under a fixed seed."""
    train: Data = NO_SAMPLES
    """Training samples that all nodes share: `(inputs, targets)` as tensors or arrays, or a map-style Dataset of such
    pairs. The inputs of a model that takes several tensors are a tuple of them, or a mapping by the names of its
    arguments."""
    test: Data = NO_SAMPLES
    """Held-out samples, in the same form."""
    loss: Loss = functional.cross_entropy
    """(outputs, targets) -> mean loss over the batch, a scalar."""
    accuracy: Score | None = None
    """(outputs, targets) -> mean score over the batch, a plain number; higher is better. The default is the share of
    correct classes for a classification, and no metric but the loss for a regression."""
    metric: Metric | None = None
    """Alternative to `accuracy`: a metric with a name, a direction and a format, or one over the whole test set."""
    metrics: tuple[Metric, ...] = ()
    """Further metrics of the held-out samples, each recorded under its name. `training.metric` makes one of them the
    main metric."""
    collate: Collate | None = None
    """Samples of a Dataset -> (inputs, targets) of a batch, for samples of different lengths; as the `collate_fn` of a
    DataLoader."""
    optimizer: MakeOptimizer | None = None
    """(parameters, learning rate) -> optimizer of a node's local steps, such as the class `torch.optim.RMSprop`. It is
    used with `training.local_optimizer` of `auto` or `task`, and more than one local step."""
    name: str = "task"
    """Name in status and reports."""
    target: float | None = None
    """Value of the metric on held-out data that a run of the documented length reaches; any real number."""
    local: LocalSamples | None = None
    """Node id -> training samples that this node alone holds, in the same form; for `training.partition` of `local`. It
    runs on that node only, and may read what its machine has: a mounted directory, or an environment variable."""

    def __post_init__(self) -> None:
        for what, data, is_needed in (("train", self.train, self.local is None), ("test", self.test, True)):
            if count(data) == 0 and is_needed:
                raise InvalidInput(f"task {self.name!r} has no {what} samples")
        if self.accuracy is not None and self.metric is not None:
            raise InvalidInput(f"task {self.name!r} has an accuracy and a metric; give one of them")
        names = [each.name for each in (self.metric, *self.metrics) if each is not None]
        if len(set(names)) < len(names):
            raise InvalidInput(f"task {self.name!r} has metrics of the same name: {', '.join(names)}")
        if self.target is not None and not math.isfinite(self.target):
            raise InvalidInput(f"the target of task {self.name!r} is {self.target}; give a finite number, or None")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss and metric of a model on held-out samples."""

    loss: float
    metric: float | None
    """Task's metric; None if it is undefined or the task has none."""
    samples: int
    batch_size: int
    """Batch size at the end: smaller than requested if memory ran out."""
    fault: str = ""
    """Error of a metric; empty if all were computed."""
    others: Mapping[str, float | None] = field(default_factory=dict)
    """Further metrics of the task by name; None where one is undefined."""


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, *, batch_size: int = 64) -> Evaluation:
    """Return the mean loss and the metrics over `task.test`; batches are weighted by their size.

    A metric that fails is undefined, with its error in `fault`. The model keeps its mode (train or eval).

    Args:
        model: on any device.
        task: with its held-out samples.
        batch_size: samples per batch; halved when memory runs out, down to 1.
    """
    was_training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    total = count(task.test)
    loss, tallies = 0.0, [Tally(task), *(Tally(task, metric) for metric in task.metrics)]

    def take(start: int, size: int) -> None:
        nonlocal loss
        inputs, targets = fetch(task.test, range(start, start + size), device, task.collate)
        outputs = from_reduced(call(model, inputs))
        batch_loss = float(task.loss(outputs, targets))
        for tally in tallies:
            tally.add(outputs, targets, size)
        loss += size * batch_loss  # last: a batch that exceeds the memory is taken again in halves

    try:
        batch_size = in_batches(total, batch_size, take)
    finally:
        model.train(was_training)
    main, *further = (tally.value() for tally in tallies)
    others = {metric.name: value for metric, value in zip(task.metrics, further, strict=True)}
    fault = next((tally.fault for tally in tallies if tally.fault), "")
    return Evaluation(loss / total, main, total, batch_size, fault, others)
