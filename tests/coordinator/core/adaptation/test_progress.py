"""What counts as divergence, and what as the best model."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest

from hypergpu.common.metric import MetricSpec
from hypergpu.coordinator.core.adaptation.progress import ModelProgress, ProgressTracker, RollbackReason
from hypergpu.coordinator.core.rounds.adaptation import RoundReport
from hypergpu.coordinator.core.rounds.events import Contribution


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ((2.0, 1.0, 1.49), False),
        ((2.0, 1.0, 1.51), True),
        ((2.0, 0.1, 0.4), False),  # four times the best, and most of the progress is still there
        ((2.0, 0.1, 0.6), True),
        ((2.3, 2.27, 2.5), False),  # little was gained, so little can be lost
        ((2.3, 2.27, 3.5), True),
        ((-1.0, -2.0, -1.1), False),
        ((-1.0, -2.0, -0.9), True),
    ],
)
def test_divergence_undoes_progress_and_is_seen_in_the_round_in_which_it_comes(
    losses: tuple[float, ...], diverged: bool
) -> None:
    tracker = ProgressTracker()
    found = [tracker.observe(number, loss) for number, loss in enumerate(losses, 1)]
    assert found[:-1] == [None] * (len(losses) - 1)
    assert (found[-1] is not None) is diverged
    if found[-1] is not None:
        assert found[-1].reason is RollbackReason.LOSS_ROSE
        assert found[-1].figures == {"loss": losses[-1], "best_loss": losses[-2], "best_round": 2}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_diverged_even_in_the_first_round(loss: float) -> None:
    found = ProgressTracker().observe(1, loss)
    assert found is not None
    assert found.reason is RollbackReason.LOSS_NOT_FINITE


def report(number: int, before: float, loss: float | None = None) -> RoundReport:
    done = [Contribution("a", True, 64, 64, loss_before=before), Contribution("b", False, loss_before=99.0)]
    figures: dict[str, Any] = {"loss": loss} if loss is not None else {"loss": 50.0, "evaluated": False}
    return RoundReport(number, seconds=1.0, samples=64, contributions=done, **figures)


def test_the_best_model_is_the_one_of_the_lowest_held_out_loss() -> None:
    progress = ModelProgress()
    improved = []
    for number, loss in enumerate((2.0, 1.5, 1.6, 1.4), 1):
        assert progress.observe(report(number, 2.0, loss)) is None
        improved.append(progress.improved)
    assert improved == [True, True, False, True]
    assert progress.decrease == pytest.approx(math.log(1.6 / 1.4))


@pytest.mark.parametrize(
    ("better", "metrics", "improved"),
    [
        ("higher", (0.5, 0.6, 0.6, 0.6, 0.55), [True, True, False, True, False]),
        ("lower", (9.0, 8.0, 8.0, 8.0, 8.5), [True, True, False, True, False]),
    ],
)
def test_the_best_model_has_the_best_metric_and_of_equal_ones_the_lowest_loss(
    better: Literal["higher", "lower"], metrics: Sequence[float], improved: Sequence[bool]
) -> None:
    spec, found = MetricSpec(name="m", better=better), []
    progress = ModelProgress()
    for number, (metric, loss) in enumerate(zip(metrics, (0.5, 0.6, 0.7, 0.55, 0.4), strict=True), 1):
        progress.observe(replace(report(number, 2.0, loss), metric=metric, spec=spec))
        found.append(progress.improved)
    assert found == improved
    assert progress.since_best == 1


def test_the_best_model_survives_a_restart() -> None:
    progress, restored = ModelProgress(), ModelProgress()
    assert progress.state().best_loss is None
    progress.observe(replace(report(1, 2.0, 0.5), metric=0.9))
    restored.restore(progress.state())
    assert restored.state() == progress.state()
    restored.observe(replace(report(2, 2.0, 0.4), metric=0.89))
    assert not restored.improved
    restored.observe(replace(report(3, 2.0, 0.4), metric=0.9))
    assert restored.improved


def test_losses_since_the_best_are_counted_where_they_are_measured() -> None:
    progress, since = ModelProgress(), []
    for number, loss in enumerate((2.0, 2.1, None, None, 2.1, 1.9), 1):
        progress.observe(report(number, 2.0, loss))
        since.append(progress.since_best)
    assert since == [0, 1, 1, 1, 2, 0], "a round without an evaluation says nothing of the held-out loss"
    unevaluated = ModelProgress()
    for number, before in enumerate((2.0, 1.0, 1.1, 1.1), 1):
        unevaluated.observe(report(number, before))
    assert unevaluated.since_best == 2
    unevaluated.return_to_best()
    assert unevaluated.since_best == 0


def test_without_evaluations_the_losses_before_the_work_take_their_place_a_round_late() -> None:
    progress = ModelProgress()
    assert progress.observe(report(1, 2.0)) is None
    assert progress.observe(report(2, 1.0)) is None
    assert progress.decrease == pytest.approx(math.log(2.0))
    found = progress.observe(report(3, 1.8))
    assert found is not None
    assert found.figures["best_round"] == 1, "the loss before round 2 is that of the model after round 1"
    assert not progress.improved


def test_training_losses_show_divergence_between_evaluations() -> None:
    progress = ModelProgress()
    progress.observe(report(1, 2.0, 1.0))
    progress.observe(report(2, 1.0))
    found = progress.observe(report(3, 5.0))
    assert found is not None
    assert found.reason is RollbackReason.LOSS_ROSE


def test_a_held_out_loss_that_falls_overrules_losses_of_a_few_batches() -> None:
    progress = ModelProgress()
    found = [progress.observe(report(number, before, 1.0 / number)) for number, before in enumerate((2.0, 0.5, 1.9), 1)]
    assert found == [None, None, None]
    assert progress.improved
