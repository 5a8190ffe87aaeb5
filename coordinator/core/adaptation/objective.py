"""The objective, progress per second, and the verdict whether a change made it worse."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from hypergpu.common.statistics import MEDIAN_ERROR, robust_sigma
from hypergpu.coordinator.core.batching.goodput import batch_progress, steps_progress

_VERDICT_ROUNDS = 3
"""Rounds after a change before it is judged."""
_SIGMAS = 3.0
_USUAL_SPREAD = 0.15
"""Of the rate from round to round, relative: what a jittery link does."""
_LEAST_DROP = 0.10
"""A smaller relative drop is not worth a rollback, however clear."""


class RollbackReason(StrEnum):
    """Why a configuration was restored."""

    OBJECTIVE_FELL = "objective_fell"
    LOSS_ROSE = "loss_rose"
    LOSS_NOT_FINITE = "loss_not_finite"
    WORSE_THAN_WARM_UP = "worse_than_warm_up"


class RoundMeasurement(NamedTuple):
    """A round, as far as the objective goes."""

    total_batch: float
    """Samples per local step, of all nodes."""
    local_steps: int
    seconds: float
    exchange_seconds: float
    """What the network took of it: where that has grown, the objective fell for no fault of the configuration."""


@dataclass(frozen=True, slots=True)
class ProgressModel:
    """What progress is measured with. It changes during a run, so rounds are compared with the same one."""

    noise_scale: float
    drift_steps: float

    def rates(self, rounds: Iterable[RoundMeasurement]) -> list[float]:
        """Progress per second of each of these rounds."""
        return [self.progress(each) / each.seconds if each.seconds > 0 else 0.0 for each in rounds]

    def progress(self, measured: RoundMeasurement) -> float:
        """Of one round; see `hypergpu.coordinator.core.batching.goodput`."""
        steps = steps_progress(measured.local_steps, self.drift_steps)
        return steps * float(batch_progress(measured.total_batch, self.noise_scale))


@dataclass(frozen=True, slots=True)
class ConfigurationSnapshot:
    """A configuration, and how well it did."""

    round: int
    selected: tuple[str, ...]
    batch_sizes: Mapping[str, int]
    local_steps: int
    learning_rate_factor: float
    rounds: tuple[RoundMeasurement, ...]

    @property
    def exchange_seconds(self) -> float:
        """Median of what the network took of its rounds."""
        return float(np.median([each.exchange_seconds for each in self.rounds])) if self.rounds else 0.0


@dataclass(frozen=True, slots=True)
class Regression:
    """That the present configuration does worse than a snapshot."""

    reason: RollbackReason
    figures: Mapping[str, float | int | str]


class Objective:
    """Progress per second of the latest rounds, by configuration."""

    def __init__(self) -> None:
        self._rounds: deque[RoundMeasurement] = deque(maxlen=8)
        self._best_loss = math.inf
        self._loss: float | None = None
        self._loss_noise = 0.0
        self._rises = 0

    def changed(self) -> None:
        """The configuration changed: what was measured before says nothing about it."""
        self._rounds.clear()

    def observe(self, measured: RoundMeasurement, loss: float) -> None:
        """A round, and the loss after it."""
        self._rounds.append(measured)
        if not math.isfinite(loss):
            self._loss = loss
            return
        if self._loss is None or not math.isfinite(self._loss):
            self._loss = loss
        else:
            self._loss_noise = 0.8 * self._loss_noise + 0.2 * abs(loss - self._loss)
            self._loss += 0.5 * (loss - self._loss)
        limit = self._best_loss + _SIGMAS * self._loss_noise + 0.25 * abs(self._best_loss)
        self._rises = self._rises + 1 if loss > limit and self._loss > limit else 0
        self._best_loss = min(self._best_loss, self._loss)

    def forget_loss(self) -> None:
        """After a rollback: judge the loss anew."""
        self._best_loss, self._loss, self._loss_noise, self._rises = math.inf, None, 0.0, 0

    @property
    def settled(self) -> bool:
        """The present configuration has run for long enough to be judged."""
        return len(self._rounds) >= _VERDICT_ROUNDS

    @property
    def rounds(self) -> tuple[RoundMeasurement, ...]:
        """The latest rounds of the present configuration."""
        return tuple(self._rounds)

    def value(self, worth: ProgressModel) -> float:
        """The median progress per second of the present configuration; 0 before its first round."""
        return _centre(worth.rates(self._rounds))[0]

    def loss_verdict(self) -> Regression | None:
        """Whether the loss says that something is wrong."""
        if self._loss is None:
            return None
        if not math.isfinite(self._loss):
            return Regression(RollbackReason.LOSS_NOT_FINITE, {"loss": str(self._loss)})
        if self._rises >= 2:
            figures: dict[str, float | int | str] = {
                "loss": self._loss,
                "best_loss": self._best_loss,
                "noise": self._loss_noise,
            }
            return Regression(RollbackReason.LOSS_ROSE, figures)
        return None

    def verdict(self, before: ConfigurationSnapshot, worth: ProgressModel, reason: RollbackReason) -> Regression | None:
        """Whether the configuration does worse than `before`, beyond the noise and not for the network's sake."""
        if not self.settled or not before.rounds:
            return None
        now, now_noise = _centre(worth.rates(self._rounds))
        then, then_noise = _centre(worth.rates(before.rounds))
        noise = math.hypot(now_noise, then_noise)
        exchange = float(np.median([each.exchange_seconds for each in self._rounds]))
        network_changed = exchange > 1.3 * before.exchange_seconds
        if then - now <= max(_SIGMAS * noise, _LEAST_DROP * then) or network_changed:
            return None
        return Regression(
            reason,
            {
                "progress_per_second": now,
                "progress_per_second_before": then,
                "noise": noise,
                "snapshot_round": before.round,
            },
        )


def _centre(rates: list[float]) -> tuple[float, float]:
    """Median, and its standard deviation from the MAD; few rounds look calmer than they are, hence the floor."""
    if not rates:
        return 0.0, 0.0
    values = np.array(rates)
    median = float(np.median(values))
    spread = max(robust_sigma(values), _USUAL_SPREAD * median)
    return median, MEDIAN_ERROR * spread / math.sqrt(len(values))
