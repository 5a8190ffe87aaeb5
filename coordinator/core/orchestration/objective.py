"""The objective, progress per second, and the verdict whether a change made it worse."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A configuration, and how well it did."""

    round: int
    selected: tuple[str, ...]
    batch_sizes: Mapping[str, int]
    local_steps: int
    learning_rate_factor: float
    objective: float
    noise: float
    exchange_seconds: float
    """What the network took of a round: where it has changed, the objective is not the configuration's fault."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """That the present configuration does worse than a snapshot."""

    reason: RollbackReason
    figures: Mapping[str, float | int | str]


class Objective:
    """Progress per second of the latest rounds, by configuration."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=8)
        self._since_change = 0
        self._best_loss = math.inf
        self._loss: float | None = None
        self._loss_noise = 0.0
        self._rises = 0

    def changed(self) -> None:
        """The configuration changed: what was measured before says nothing about it."""
        self._rates.clear()
        self._since_change = 0

    def observe(self, rate: float, loss: float) -> None:
        """A round's progress per second and loss."""
        self._rates.append(rate)
        self._since_change += 1
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
        return self._since_change >= _VERDICT_ROUNDS

    @property
    def value(self) -> float:
        """The median rate of the present configuration; 0 before its first round."""
        return float(np.median(self._rates)) if self._rates else 0.0

    @property
    def noise(self) -> float:
        """Standard deviation of the median, from the MAD; few rounds look calmer than they are, hence the floor."""
        if not self._rates:
            return 0.0
        rates = np.array(self._rates)
        spread = 1.4826 * float(np.median(np.abs(rates - np.median(rates))))
        return 1.2533 * max(spread, _USUAL_SPREAD * self.value) / math.sqrt(len(rates))

    def loss_verdict(self) -> Verdict | None:
        """Whether the loss says that something is wrong."""
        if self._loss is None:
            return None
        if not math.isfinite(self._loss):
            return Verdict(RollbackReason.LOSS_NOT_FINITE, {"loss": str(self._loss)})
        if self._rises >= 2:
            figures: dict[str, float | int | str] = {
                "loss": self._loss,
                "best_loss": self._best_loss,
                "noise": self._loss_noise,
            }
            return Verdict(RollbackReason.LOSS_ROSE, figures)
        return None

    def verdict(self, before: Snapshot, exchange_seconds: float, reason: RollbackReason) -> Verdict | None:
        """Whether the configuration does worse than `before`, beyond the noise and not for the network's sake."""
        if not self.settled or before.objective <= 0:
            return None
        noise = math.hypot(self.noise, before.noise)
        drop = before.objective - self.value
        network_changed = exchange_seconds > 1.3 * before.exchange_seconds
        if drop <= max(_SIGMAS * noise, _LEAST_DROP * before.objective) or network_changed:
            return None
        return Verdict(
            reason,
            {
                "progress_per_second": self.value,
                "progress_per_second_before": before.objective,
                "noise": noise,
                "snapshot_round": before.round,
            },
        )
