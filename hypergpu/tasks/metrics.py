"""What a model is judged by, beside its loss: a named metric, over batches or over a whole set."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.common.metric import ACCURACY, LOSS, RESERVED, MetricSpec
from hypergpu.tasks.memory import is_out_of_memory
from hypergpu.tasks.samples import fetch
from hypergpu.tasks.seeding import seeded

if TYPE_CHECKING:
    from hypergpu.tasks.base import Task

Score = Callable[[Tensor, Tensor], "Tensor | float | None"]
"""(outputs, targets) -> one number; NaN or None is undefined."""


class MetricFailed(HyperGPUError):
    """A metric raised, or gave something that is not one number."""


def share_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of targets that have the largest output; classes are dimension 1, as in `cross_entropy`."""
    return (outputs.argmax(1) == targets).float().mean()


@dataclass(frozen=True)
class Metric:
    """The main metric of a task.

    >>> mse = Metric("mse", nn.functional.mse_loss, better="lower")
    >>> mse.spec.text(0.25)
    '0.25'

    Raises:
        InvalidInput: a name that is taken or cannot be written, or an unknown word.
    """

    name: str
    """Name, in every table, file and series."""
    function: Score
    """(outputs, targets) -> one number."""
    better: Literal["higher", "lower"] = "higher"
    """Direction of improvement."""
    format: Literal["number", "percent"] = "number"
    """`percent` for a share of 0 to 1."""
    unit: str = ""
    """Unit of a plain number."""
    over: Literal["batches", "set"] = "batches"
    """`batches`: the mean over batches, weighted by their size. `set`: one call with the outputs and targets of all
    samples, for a figure that is no mean of parts (R², AUC, F1). These are kept in the coordinator's memory
    meanwhile: a million samples of 10 outputs take 48 MB."""

    def __post_init__(self) -> None:
        if self.over not in ("batches", "set"):
            raise InvalidInput(f"metric {self.name!r}: over is 'batches' or 'set', not {self.over!r}")
        if self.name in RESERVED:
            raise InvalidInput(f"metric {self.name!r}: the name is taken by a figure of every run; choose another")
        _ = self.spec

    @property
    def spec(self) -> MetricSpec:
        """Name, direction and format."""
        try:
            return MetricSpec(name=self.name, better=self.better, format=self.format, unit=self.unit)
        except ValidationError as error:
            fault = error.errors()[0]
            raise InvalidInput(f"metric {self.name!r}: {fault['loc'][0]}: {fault['msg']}") from error

    @torch.no_grad()
    def score(self, outputs: Tensor, targets: Tensor) -> float | None:
        """The metric of these samples; None where it is undefined.

        Raises:
            MetricFailed: the function raised, or gave something that is not one number.
        """
        try:
            found = self.function(outputs, targets)
            number = math.nan if found is None else float(found)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            what = " ".join(str(error).split())[:300]
            raise MetricFailed(f"metric {self.name!r} raised {type(error).__name__}: {what}") from error
        return number if math.isfinite(number) else None


CLASSIFICATION = Metric("accuracy", share_correct, better="higher", format="percent")
"""The metric of a classification task that names none."""
assert CLASSIFICATION.spec == ACCURACY


def spec_of(metric: Metric | None) -> MetricSpec:
    """Name, direction and format of the main metric; those of the loss where there is none."""
    return LOSS if metric is None else metric.spec


def metric_for(task: "Task", outputs: Tensor, targets: Tensor) -> Metric | None:
    """The metric that a task names, or the accuracy of a classification; None where only the loss can be told.

    A classification has class numbers as targets, and outputs with a dimension of two classes or more.
    """
    if task.metric is not None:
        return task.metric
    if task.accuracy is not None:
        return CLASSIFICATION if task.accuracy is share_correct else Metric("accuracy", task.accuracy)
    if not isinstance(outputs, Tensor) or targets.is_floating_point():
        return None
    classes = outputs.ndim > 1 and outputs.shape[1] > 1
    return CLASSIFICATION if classes and outputs.shape[:1] + outputs.shape[2:] == targets.shape else None


@torch.no_grad()
def metric_of(task: "Task", module: nn.Module) -> Metric | None:
    """As `metric_for`, of a task and its model, whose outputs for one held-out sample are looked at.

    Args:
        task: with its held-out samples.
        module: its model, on any device; its mode is restored.
    """
    nothing = torch.empty(0)
    if task.metric is not None or task.accuracy is not None:
        return metric_for(task, nothing, nothing)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    was_training = module.training
    module.eval()
    try:
        inputs, targets = fetch(task.test, range(1), device)
        with seeded(0, device):
            return metric_for(task, module(inputs), targets)
    except Exception:
        return CLASSIFICATION
    finally:
        module.train(was_training)


@dataclass
class Tally:
    """Collects the metric of a task over the batches of a set."""

    task: "Task"
    metric: Metric | None = None
    """Known from the first batch on."""
    fault: str = ""
    """What the metric raised first; its value is undefined then."""
    _sum: float = 0.0
    _samples: int = 0
    _kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, outputs: Tensor, targets: Tensor, samples: int) -> None:
        """Take in a batch."""
        self.metric = self.metric or metric_for(self.task, outputs, targets)
        if self.metric is None or self.fault:
            return
        if self.metric.over == "set":
            if isinstance(outputs, Tensor):
                self._kept.append((outputs.detach().cpu(), targets.detach().cpu()))
            else:
                self.fault = f"metric {self.metric.name!r} is over the set, which takes outputs that are one tensor"
            return
        value = self._score(outputs, targets)
        self._sum += samples * (math.nan if value is None else value)
        self._samples += samples

    def value(self) -> float | None:
        """The metric over all that was added; None where it is undefined, or failed."""
        if self.metric is None or self.fault:
            return None
        if self._kept:
            outputs, targets = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
            return self._score(outputs, targets)
        mean = self._sum / self._samples if self._samples else math.nan
        return mean if math.isfinite(mean) else None

    def _score(self, outputs: Tensor, targets: Tensor) -> float | None:
        assert self.metric is not None
        try:
            return self.metric.score(outputs, targets)
        except MetricFailed as failure:
            self.fault = str(failure)
            return None
