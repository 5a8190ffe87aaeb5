"""Progress of the model: the best one so far, and the judgement whether training has diverged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from hypergpu.common.metric import finite
from hypergpu.coordinator.core.adaptation.state import LossRecord, ProgressState
from hypergpu.coordinator.core.rounds.adaptation import RoundReport
from hypergpu.coordinator.core.score import Score

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
    DATA_MISSING = "data_missing"
    """The loss rose in a round without the data that only some nodes hold."""


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

    The second is a round late, since nodes measure it before they begin, and needs no evaluation. Where there are
    evaluations, the best model is the one with the best metric: held-out loss may rise while accuracy still does, as a
    model that is sure of what it gets wrong pays more for it.
    """

    def __init__(self) -> None:
        self._held_out, self._training = ProgressTracker(), ProgressTracker()
        self._best: tuple[float, float] | None = None
        """Rank of the best model; see `Score`."""
        self._since_best = 0
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
                self._best = Score(0, before, None, report.spec).rank
            # The held-out loss is of the model after this round, and of more samples than a few batches.
            found = self._held_out.observe(report.round, report.loss)
            self.decrease = _decrease(self._last if self._last is not None else before, report.loss)
            self._last = report.loss
            rank = Score(report.round, report.loss, report.metric, report.spec).rank
            self.improved = found is None and (self._best is None or rank >= self._best)
            self._best, self._since_best = (rank, 0) if self.improved else (self._best, self._since_best + 1)
        else:
            self.decrease = _decrease(self._last, before)
            self._last = before
            self.improved = found is None and before is not None and self._training.best_round == report.round - 1
        return found

    def state(self) -> ProgressState:
        """Return the state for a checkpoint."""
        worth, negative_loss = (None, None) if self._best is None else self._best
        return ProgressState(
            held_out=self._held_out.state(),
            training=self._training.state(),
            last_loss=finite(self._last),
            best_worth=finite(worth),
            best_loss=None if negative_loss is None else -negative_loss,
            since_best=self._since_best,
        )

    def restore(self, state: ProgressState) -> None:
        """Go on from the state of an earlier process."""
        self._held_out.restore(state.held_out)
        self._training.restore(state.training)
        worth = -math.inf if state.best_worth is None else state.best_worth
        self._best = None if state.best_loss is None else (worth, -state.best_loss)
        self._since_best, self._last = state.since_best, state.last_loss

    @property
    def since_best(self) -> int:
        """Models in a row that were not the best: evaluated ones if there are any."""
        return self._training.since_best if self._best is None else self._since_best

    def return_to_best(self) -> None:
        """Note that the model is again the best one."""
        self._last = None
        self._since_best = self._training.since_best = 0


def _decrease(before: float | None, after: float | None) -> float:
    if before is None or after is None or not math.isfinite(before - after):
        return 0.0
    return math.log(before / after) if before > 0 and after > 0 else before - after
