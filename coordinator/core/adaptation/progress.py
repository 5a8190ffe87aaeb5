"""Progress of the model: the best loss so far, and the judgement whether training has diverged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from hypergpu.common.metric import finite
from hypergpu.coordinator.core.adaptation.state import LossRecord
from hypergpu.coordinator.core.rounds.adaptation import RoundReport

_RISE = 0.5
"""Relative rise above the best loss that may be divergence."""
_LOST_PROGRESS = 0.25
"""Share of all progress so far that divergence has undone: near the end, loss may double and still be tiny."""


class RollbackReason(StrEnum):
    """Reason for a rollback."""

    LOSS_ROSE = "loss_rose"
    LOSS_NOT_FINITE = "loss_not_finite"
    UPDATES_NOT_FINITE = "updates_not_finite"
    """No node could finish its work: losses or gradients were not finite."""


@dataclass(frozen=True, slots=True)
class Regression:
    """Finding that training has diverged."""

    reason: RollbackReason
    figures: Mapping[str, float | int | str]


class ProgressTracker:
    """Follows a loss that is measured the same way each time: held-out, or of the first batches of training."""

    def __init__(self) -> None:
        self.best = math.inf
        """Lowest loss so far."""
        self.best_round = 0
        """Round of the lowest loss."""
        self.since_best = 0
        """Losses since then."""
        self._first = math.nan

    def observe(self, round_number: int, loss: float) -> Regression | None:
        """Record the loss after a round, and return a regression if training has diverged."""
        if not math.isfinite(loss):
            return Regression(RollbackReason.LOSS_NOT_FINITE, {"loss": str(loss)})
        if math.isnan(self._first):
            self._first = loss
        if loss <= self.best:
            self.best, self.best_round, self.since_best = loss, round_number, 0
            return None
        self.since_best += 1
        rise = loss - self.best
        if rise <= max(_RISE * abs(self.best), _LOST_PROGRESS * (self._first - self.best)):
            return None
        figures = {"loss": loss, "best_loss": self.best, "best_round": self.best_round}
        return Regression(RollbackReason.LOSS_ROSE, figures)

    def state(self) -> LossRecord:
        """Return the state for a checkpoint."""
        return LossRecord(finite(self.best), self.best_round, self.since_best, finite(self._first))

    def restore(self, state: LossRecord) -> None:
        """Go on from the state of an earlier process."""
        self.best = math.inf if state.best is None else state.best
        self.best_round, self.since_best = state.best_round, state.since_best
        self._first = math.nan if state.first is None else state.first


class ModelProgress:
    """Follows the model by two losses: held-out where it is evaluated, and of the first batches before each work.

    The second is a round late, since nodes measure it before they begin, and needs no evaluation.
    """

    def __init__(self) -> None:
        self._held_out, self._training = ProgressTracker(), ProgressTracker()
        self._last: float | None = None
        self.improved = False
        """True if the latest round has given the best model so far."""
        self.decrease = 0.0
        """Decrease of the logarithm of the loss by the latest round; of the loss itself where it is not positive."""

    def observe(self, report: RoundReport) -> Regression | None:
        """Record a round, and return a regression if training has diverged."""
        losses = [each.loss_before for each in report.contributions if each.success and each.loss_before]
        before = fmean(losses) if losses else None
        found = self._training.observe(report.round - 1, before) if before is not None else None
        if report.evaluated:
            if report.round == 1 and before is not None:
                self._held_out.observe(0, before)  # untrained, the model is as good on training data
            # The held-out loss is of the model after this round, and of more samples than a few batches.
            found = self._held_out.observe(report.round, report.loss)
            self.decrease = _decrease(self._last if self._last is not None else before, report.loss)
            self._last = report.loss
            self.improved = found is None and self._held_out.best_round == report.round
        else:
            self.decrease = _decrease(self._last, before)
            self._last = before
            self.improved = found is None and before is not None and self._training.best_round == report.round - 1
        return found

    def state(self) -> tuple[LossRecord, LossRecord, float | None]:
        """Return the state for a checkpoint: held-out, training, and the loss that the next decrease begins at."""
        return self._held_out.state(), self._training.state(), finite(self._last)

    def restore(self, held_out: LossRecord, training: LossRecord, last: float | None) -> None:
        """Go on from the state of an earlier process."""
        self._held_out.restore(held_out)
        self._training.restore(training)
        self._last = last

    @property
    def since_best(self) -> int:
        """Losses in a row that were not the best: of those on held-out data if there are any."""
        return (self._held_out if math.isfinite(self._held_out.best) else self._training).since_best

    def return_to_best(self) -> None:
        """Note that the model is again the best one."""
        self._last = None
        self._held_out.since_best = self._training.since_best = 0


def _decrease(before: float | None, after: float | None) -> float:
    if before is None or after is None or not math.isfinite(before - after):
        return 0.0
    return math.log(before / after) if before > 0 and after > 0 else before - after
