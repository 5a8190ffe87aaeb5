"""The objective (progress per second), and the judgement whether a change made it worse."""

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
"""Number of rounds before a new configuration is judged."""
_SIGMAS = 3.0
_USUAL_SPREAD = 0.15
"""Relative spread of the rate between rounds that a link with jitter causes; a floor for the measured spread."""
_LEAST_DROP = 0.10
"""Smallest relative drop that justifies a rollback."""


class RollbackReason(StrEnum):
    """Reason for a rollback."""

    OBJECTIVE_FELL = "objective_fell"
    LOSS_ROSE = "loss_rose"
    LOSS_NOT_FINITE = "loss_not_finite"
    WORSE_THAN_WARM_UP = "worse_than_warm_up"


class RoundMeasurement(NamedTuple):
    """Measurements of a round that enter the objective."""

    total_batch: float
    """Samples per local step over all nodes."""
    local_steps: int
    seconds: float
    exchange_seconds: float
    """Part of `seconds` for communication. If it grew, the network and not the configuration lowered the objective."""


@dataclass(frozen=True, slots=True)
class ProgressModel:
    """Parameters of the progress estimate. They change during a run, so rounds are compared under the same model."""

    noise_scale: float
    drift_steps: float

    def rates(self, rounds: Iterable[RoundMeasurement]) -> list[float]:
        """Return the progress per second of each round."""
        return [self.progress(each) / each.seconds if each.seconds > 0 else 0.0 for each in rounds]

    def progress(self, measured: RoundMeasurement) -> float:
        """Return the progress of a round; see `hypergpu.coordinator.core.batching.goodput`."""
        steps = steps_progress(measured.local_steps, self.drift_steps)
        return steps * float(batch_progress(measured.total_batch, self.noise_scale))


@dataclass(frozen=True, slots=True)
class ConfigurationSnapshot:
    """A configuration and its measured rounds."""

    round: int
    selected: tuple[str, ...]
    batch_sizes: Mapping[str, int]
    local_steps: int
    learning_rate_factor: float
    rounds: tuple[RoundMeasurement, ...]

    @property
    def exchange_seconds(self) -> float:
        """Median communication of the rounds; 0 without any."""
        return float(np.median([each.exchange_seconds for each in self.rounds])) if self.rounds else 0.0


@dataclass(frozen=True, slots=True)
class Regression:
    """Finding that the present configuration performs worse than before."""

    reason: RollbackReason
    figures: Mapping[str, float | int | str]


class Objective:
    """Progress per second of the present configuration's rounds, and the trend of the loss."""

    def __init__(self) -> None:
        self._rounds: deque[RoundMeasurement] = deque(maxlen=8)
        self._best_loss = math.inf
        self._loss: float | None = None
        self._loss_noise = 0.0
        self._rises = 0

    def changed(self) -> None:
        """Discard the measured rounds after a change of configuration."""
        self._rounds.clear()

    def observe(self, measured: RoundMeasurement, loss: float) -> None:
        """Record a round and the loss after it."""
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
        """Discard the history of the loss after a rollback."""
        self._best_loss, self._loss, self._loss_noise, self._rises = math.inf, None, 0.0, 0

    @property
    def settled(self) -> bool:
        """Whether the present configuration has enough rounds to be judged."""
        return len(self._rounds) >= _VERDICT_ROUNDS

    @property
    def rounds(self) -> tuple[RoundMeasurement, ...]:
        """Latest rounds of the present configuration."""
        return tuple(self._rounds)

    def value(self, worth: ProgressModel) -> float:
        """Return the median progress per second of the present configuration; 0 before its first round."""
        return _centre(worth.rates(self._rounds))[0]

    def loss_verdict(self) -> Regression | None:
        """Return a regression if the loss is not finite or has risen clearly, else None."""
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
        """Return a regression if the configuration performs worse than `before`, else None.

        The drop has to exceed the noise, and it does not count if communication has become much slower.
        """
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
    """Return the median and its standard error from the MAD, with a floor since few rounds underestimate the spread."""
    if not rates:
        return 0.0, 0.0
    values = np.array(rates)
    median = float(np.median(values))
    spread = max(robust_sigma(values), _USUAL_SPREAD * median)
    return median, MEDIAN_ERROR * spread / math.sqrt(len(values))
