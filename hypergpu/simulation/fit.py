"""Fits the model of convergence to real runs of a task: `hypergpu fit digits`.

The runs have perfect links and the task's default learning rate; they differ in nodes and batch, so that the
noise scale shows. Residuals are of the logarithm of the loss and of the metric, at every round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from hypergpu.common.config import TrainingConfig
from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.coordinator.core.rounds.events import Shard, WorkAssigned
from hypergpu.simulation.convergence import Convergence
from hypergpu.simulation.gradients import GradientBackend, on_one_thread
from hypergpu.tasks import load_task

SETUPS = ((1, 16), (1, 64), (4, 32), (5, 64), (8, 128), (20, 64))
"""Nodes and batch of each run."""
_METRIC_WEIGHT = 5.0
"""Weight of a residual of the metric, relative to its range, against one of the log loss."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of one real run, which start before its first round."""

    losses: Sequence[float]
    metrics: Sequence[float | None]
    trained: Sequence[float]
    """Loss of each work unit on its first batch."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Constants of a task, and their distance from the runs."""

    model: Convergence
    metric: MetricSpec
    loss_error: float
    """Root mean square error of the logarithm of the loss."""
    metric_error: float | None
    """Root mean square error of the metric; None if the task has none beside its loss."""


def run(learning: GradientBackend, config: TrainingConfig, nodes: int, batch: int, rounds: int) -> Curves:
    """Train for some rounds on perfect links, and evaluate before the first and after each."""
    points, trained = [learning.evaluate()], []
    for number in range(rounds):
        cursor = number * config.local_steps * batch
        optimizer, rate = config.first_optimizer
        for index in range(nodes):
            shard = Shard(index, nodes, cursor)
            order = WorkAssigned(
                number + 1, f"node_{index}", 1, batch, config.local_steps, rate, optimizer, shard, float("inf")
            )
            result = learning.train(order)
            learning.add(result.samples)
            trained.append(result.loss_before)
        learning.step()
        points.append(learning.evaluate())
    losses, metrics = zip(*points, strict=True)
    return Curves(losses, metrics, trained)


def fit(task: str, rounds: int = 60, seed: int = 0, progress: Callable[[str], None] = lambda _: None) -> Fitted:
    """Fit the constants of a task.

    Raises:
        UnknownName, InvalidInput: there is no such task, or it cannot be loaded.
    """
    on_one_thread()
    config = TrainingConfig(task=task, seed=seed)
    runs = []
    for number, (nodes, batch) in enumerate(SETUPS, 1):
        progress(f"run {number} of {len(SETUPS)}: {nodes} {'node' if nodes == 1 else 'nodes'}, batches of {batch}")
        learning = GradientBackend(load_task(task, config.seed), config)
        runs.append(run(learning, config, nodes, batch, rounds))
    progress("fitting")
    base = Convergence(
        model_bytes=learning.model_bytes,
        learning_rate=config.learning_rate,
        noise_scale=64.0,
        loss_start=float(np.mean([each.losses[0] for each in runs])),
        loss_floor=0.05,
        loss_scale=10.0,
        loss_power=1.0,
    )
    late = np.array(runs[SETUPS.index((5, 64))].trained[-100:])
    spread = float(late.std() / late.mean() * 64**0.5)
    return _fitted(base.model_copy(update={"loss_spread": spread}), learning.metric, runs, config)


def _fitted(base: Convergence, metric: MetricSpec, runs: Sequence[Curves], config: TrainingConfig) -> Fitted:
    shape = _MetricShape.of(metric, runs)

    def with_values(values: Vector) -> Convergence:
        noise, floor, scale, power, *of_metric = np.exp(values)
        update = {"noise_scale": float(noise), "loss_floor": float(floor)}
        update |= {"loss_scale": float(scale), "loss_power": float(power)}
        return base.model_copy(update=update | (shape.constants(of_metric) if shape else {}))

    def residuals(values: Vector) -> tuple[Vector, Vector]:
        model = with_values(values)
        losses, metrics = [], []
        for (nodes, batch), curves in zip(SETUPS, runs, strict=True):
            for number, (loss, value) in enumerate(zip(curves.losses, curves.metrics, strict=True)):
                path = model.progress(number * config.local_steps, nodes * batch, config.learning_rate)
                losses.append(np.log(model.loss(path) / loss))
                modelled = model.metric(path)
                if value is not None and modelled is not None and shape is not None:
                    metrics.append((modelled - value) / shape.range)
        return np.array(losses), np.array(metrics)

    def weighted(values: Vector) -> Vector:
        losses, metrics = residuals(values)
        return np.concatenate([losses, _METRIC_WEIGHT * metrics])

    first = np.log([64.0, 0.05, 10.0, 1.0, *((shape.gap, 5.0, 1.5) if shape else ())])
    values = least_squares(weighted, first, loss="soft_l1", f_scale=0.1).x
    losses, metrics = residuals(values)
    error = float(np.std(metrics) * shape.range) if shape else None
    return Fitted(with_values(values), metric, float(np.std(losses)), error)


@dataclass(frozen=True, slots=True)
class _MetricShape:
    """Start, direction and range of the curve of a metric."""

    start: float
    gap: float
    """First guess of the distance from the start to the limit."""
    sign: float
    range: float
    """Range of the recorded values; 1 for a share."""
    most: float
    """Bound of the limit."""

    @classmethod
    def of(cls, metric: MetricSpec, runs: Sequence[Curves]) -> "_MetricShape | None":
        """Return the shape that the runs show; None if only the loss judges the task, or nothing is defined."""
        firsts = [each.metrics[0] for each in runs if each.metrics[0] is not None]
        values = [value for each in runs for value in each.metrics if value is not None]
        best = metric.best(values)
        if metric == LOSS or not firsts or best is None:
            return None
        start = float(np.mean(firsts))
        span = 1.0 if metric.is_share else max(max(values) - min(values), 1e-9)
        most = 1.0 if metric.is_share and metric.better == "higher" else float("inf")
        sign = 1.0 if metric.better == "higher" else -1.0
        gap = min(max(1.02 * metric.gain(best, start), 1e-3 * span), 0.999 * (most - start) if most > start else span)
        return cls(start, gap, sign, span, most)

    def constants(self, values: Sequence[float]) -> dict[str, float]:
        """Return the constants of the convergence model."""
        gap, scale, power = map(float, values)
        limit = min(self.start + self.sign * gap, self.most)
        return {"metric_start": self.start, "metric_limit": limit, "metric_scale": scale, "metric_power": power}
