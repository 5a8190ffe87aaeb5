"""Metrics of a model besides its loss, over batches or over a whole set."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.common.metric import ACCURACY, LOSS, RESERVED, MetricSpec
from hypergpu.tasks.inputs import call
from hypergpu.tasks.memory import is_out_of_memory
from hypergpu.tasks.samples import fetch
from hypergpu.tasks.seeding import seeded

if TYPE_CHECKING:
    from hypergpu.tasks.base import Task

Score = Callable[[Tensor, Tensor], "Tensor | float | None"]
"""(outputs, targets) -> one number; NaN or None means undefined."""


class MetricFailed(HyperGPUError):
    """A metric raised, or did not return one number."""


def share_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of targets with the largest output; classes are dimension 1, as in `cross_entropy`."""
    return (outputs.argmax(1) == targets).float().mean()


@dataclass(frozen=True)
class Metric:
    """Main metric of a task.

    >>> mse = Metric("mse", nn.functional.mse_loss, better="lower")
    >>> mse.spec.text(0.25)
    '0.25'

    Raises:
        InvalidInput: a reserved or unprintable name, or an unknown option.
    """

    name: str
    """Name in tables, files and series."""
    function: Score
    """(outputs, targets) -> one number."""
    better: Literal["higher", "lower"] = "higher"
    """Direction of improvement."""
    format: Literal["number", "percent"] = "number"
    """`percent` for a share of 0 to 1."""
    unit: str = ""
    """Unit of a plain number."""
    over: Literal["batches", "set"] = "batches"
    """`batches`: mean over batches, weighted by their size. `set`: one call with the outputs and targets of all
    samples, for metrics that are not means (R², AUC, F1). The coordinator keeps them in memory meanwhile: a million
    samples of 10 outputs take 48 MB."""

    def __post_init__(self) -> None:
        if self.over not in ("batches", "set"):
            raise InvalidInput(f"metric {self.name!r}: over must be 'batches' or 'set', not {self.over!r}")
        if self.name in RESERVED:
            raise InvalidInput(f"metric {self.name!r}: the name is reserved for a figure of every run; choose another")
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
        """Return the metric of some samples; None if it is undefined.

        Raises:
            MetricFailed: the function raised, or did not return one number.
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
"""Metric of a classification task without another one."""
assert CLASSIFICATION.spec == ACCURACY


def spec_of(metric: Metric | None) -> MetricSpec:
    """Return name, direction and format of a metric; those of the loss for None."""
    return LOSS if metric is None else metric.spec


def named_metric(task: "Task") -> Metric | None:
    """Return the main metric that a task names; None if it names none."""
    if task.accuracy is None:
        return task.metric
    return CLASSIFICATION if task.accuracy is share_correct else Metric("accuracy", task.accuracy)


def metric_for(task: "Task", outputs: Tensor, targets: Tensor) -> Metric | None:
    """Return the task's metric, or else the accuracy of a classification; None if there is only the loss.

    A classification has class numbers as targets, and two or more outputs per target.
    """
    named = named_metric(task)
    if named is not None:
        return named
    if not isinstance(outputs, Tensor) or targets.is_floating_point():
        return None
    classes = outputs.ndim > 1 and outputs.shape[1] > 1
    return CLASSIFICATION if classes and outputs.shape[:1] + outputs.shape[2:] == targets.shape else None


@torch.no_grad()
def metric_of(task: "Task", module: nn.Module) -> Metric | None:
    """Return the metric of a task and its model, which is run on one held-out sample; see `metric_for`.

    Args:
        task: with its held-out samples.
        module: the task's model, on any device; its mode is restored.
    """
    named = named_metric(task)
    if named is not None:
        return named
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    was_training = module.training
    module.eval()
    try:
        inputs, targets = fetch(task.test, range(1), device, task.collate)
        with seeded(0, device):
            return metric_for(task, call(module, inputs), targets)
    except Exception:
        return CLASSIFICATION
    finally:
        module.train(was_training)


@dataclass
class Tally:
    """Metric of a task over the batches of a set."""

    task: "Task"
    metric: Metric | None = None
    """None before the first batch."""
    fault: str = ""
    """First error of the metric, whose value is then undefined."""
    _sum: float = 0.0
    _samples: int = 0
    _kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, outputs: Tensor, targets: Tensor, samples: int) -> None:
        """Add a batch."""
        self.metric = self.metric or metric_for(self.task, outputs, targets)
        if self.metric is None or self.fault:
            return
        if self.metric.over == "set":
            if isinstance(outputs, Tensor):
                self._kept.append((outputs.detach().cpu(), targets.detach().cpu()))
            else:
                self.fault = f"metric {self.metric.name!r} is over the set, which needs outputs that are one tensor"
            return
        value = self._score(outputs, targets)
        self._sum += samples * (math.nan if value is None else value)
        self._samples += samples

    def value(self) -> float | None:
        """Return the metric over all batches; None if it is undefined or failed."""
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
