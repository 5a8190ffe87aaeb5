"""The verdicts of the objective, against figures worked out by hand."""

import math

import pytest

from hypergpu.coordinator.core.adaptation.objective import (
    ConfigurationSnapshot,
    Objective,
    ProgressModel,
    RollbackReason,
    RoundMeasurement,
)

WORTH = ProgressModel(noise_scale=64.0, drift_steps=1.0)
"""64 samples and one step of these are worth a quarter."""


def rounds(rate: float, count: int, exchange: float = 0.1) -> tuple[RoundMeasurement, ...]:
    """Return rounds that each make `rate` of progress a second."""
    return (RoundMeasurement(64.0, 1, 0.25 / rate, exchange),) * count


def objective(*measured: RoundMeasurement, loss: float = 1.0) -> Objective:
    subject = Objective()
    for each in measured:
        subject.observe(each, loss)
    return subject


def snapshot(measured: tuple[RoundMeasurement, ...]) -> ConfigurationSnapshot:
    return ConfigurationSnapshot(7, ("a",), {"a": 64}, 1, 1.0, measured)


def after(*losses: float) -> Objective:
    subject = Objective()
    for loss in losses:
        subject.observe(RoundMeasurement(64.0, 1, 1.0, 0.1), loss)
    return subject


def test_a_loss_that_rises_beyond_the_noise_twice_in_a_row_is_a_verdict() -> None:
    assert after(1.0, 1.0, 5.0, 5.0, 5.0).loss_verdict() is None
    verdict = after(1.0, 1.0, 5.0, 5.0, 5.0, 5.0).loss_verdict()
    assert verdict is not None
    assert verdict.reason is RollbackReason.LOSS_ROSE
    # Smoothed by halves; the noise by fifths of what each loss is off the smoothed one.
    assert verdict.figures == pytest.approx({"loss": 4.75, "best_loss": 1.0, "noise": 0.9256})


def test_one_good_loss_between_two_rises_clears_the_first() -> None:
    assert after(1.0, 1.0, 5.0, 5.0, 5.0, 1.0, 5.0).loss_verdict() is None


def test_the_best_loss_is_the_least_smoothed_one_though_others_follow() -> None:
    verdict = after(2.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0).loss_verdict()
    assert verdict is not None
    assert verdict.figures["best_loss"] == pytest.approx(1.25)


def test_a_loss_may_stay_within_a_quarter_of_the_best() -> None:
    assert after(1.0, *[1.2] * 60).loss_verdict() is None
    assert after(1.0, *[1.3] * 60).loss_verdict() is not None
    assert after(-2.0, *[-1.55] * 60).loss_verdict() is None
    assert after(-2.0, *[-1.4] * 60).loss_verdict() is not None


def test_a_loss_that_is_not_finite_is_a_verdict_at_once_and_forgotten_with_the_next() -> None:
    subject = after(1.0, math.nan)
    verdict = subject.loss_verdict()
    assert verdict is not None
    assert (verdict.reason, verdict.figures) == (RollbackReason.LOSS_NOT_FINITE, {"loss": "nan"})
    subject.observe(RoundMeasurement(64.0, 1, 1.0, 0.1), 3.0)
    assert subject.loss_verdict() is None
    assert Objective().loss_verdict() is None


def test_a_rollback_forgets_the_loss_and_what_was_best() -> None:
    subject = after(1.0, 1.0, 5.0, 5.0, 5.0, 5.0)
    subject.forget_loss()
    assert subject.loss_verdict() is None
    for _ in range(5):
        subject.observe(RoundMeasurement(64.0, 1, 1.0, 0.1), 5.0)
    assert subject.loss_verdict() is None


def test_the_value_is_the_median_progress_per_second() -> None:
    assert objective().value(WORTH) == 0.0
    assert objective(*rounds(2.0, 1), *rounds(3.0, 1), *rounds(8.0, 1)).value(WORTH) == pytest.approx(3.0)
    assert WORTH.rates([RoundMeasurement(64.0, 1, 0.0, 0.1)]) == [0.0]
    assert ProgressModel(200.0, 16.0).progress(RoundMeasurement(600.0, 16, 1.0, 0.1)) == pytest.approx(8 * 0.75)


def test_only_the_last_eight_rounds_of_a_configuration_count() -> None:
    subject = objective(*rounds(1.0, 8), *rounds(4.0, 5))
    assert len(subject.rounds) == 8
    assert subject.value(WORTH) == pytest.approx(4.0)
    subject.changed()
    assert len(subject.rounds) == 0


@pytest.mark.parametrize(
    ("now", "then", "told"),
    [
        # Few rounds look calmer than they are: their spread counts as 15 % at least. 3 · 1.2533 · 0.15 / √8 = 0.1994
        (rounds(0.77, 8), rounds(1.0, 8), False),
        (rounds(0.74, 8), rounds(1.0, 8), True),
        (rounds(0.74, 3), rounds(1.0, 8), False),
        (rounds(0.60, 3), rounds(1.0, 8), True),
        (rounds(0.60, 2), rounds(1.0, 8), False),
        (rounds(0.60, 3), (), False),
        (rounds(1.40, 8), rounds(1.0, 8), False),
        (rounds(0.50, 8, exchange=0.131), rounds(1.0, 8), False),
        (rounds(0.50, 8, exchange=0.129), rounds(1.0, 8), True),
        (rounds(0.50, 8, exchange=0.02), rounds(1.0, 8), True),
        # Of a configuration whose rounds differ by half, a drop by a quarter tells nothing.
        (rounds(0.70, 8), rounds(0.5, 2) + rounds(1.0, 3) + rounds(1.5, 3), False),
    ],
)
def test_a_configuration_does_worse_only_beyond_the_noise_and_on_the_same_network(
    now: tuple[RoundMeasurement, ...], then: tuple[RoundMeasurement, ...], told: bool
) -> None:
    verdict = objective(*now).verdict(snapshot(then), WORTH, RollbackReason.OBJECTIVE_FELL)
    assert (verdict is not None) is told
    if verdict:
        noises = [
            1.2533 * 0.15 * rate / math.sqrt(count) for rate, count in ((1.0, 8), (0.25 / now[0].seconds, len(now)))
        ]
        assert verdict.reason is RollbackReason.OBJECTIVE_FELL
        assert verdict.figures == pytest.approx(
            {
                "progress_per_second": 0.25 / now[0].seconds,
                "progress_per_second_before": 1.0,
                "noise": math.hypot(*noises),
                "snapshot_round": 7,
            }
        )


def test_the_spread_of_rounds_is_their_median_deviation_from_the_median() -> None:
    then = rounds(0.8, 3) + rounds(1.0, 2) + rounds(1.2, 3)
    verdict = objective(*rounds(0.2, 8)).verdict(snapshot(then), WORTH, RollbackReason.WORSE_THAN_WARM_UP)
    assert verdict is not None
    noises = 1.2533 * 1.4826 * 0.2 / math.sqrt(8), 1.2533 * 0.15 * 0.2 / math.sqrt(8)
    assert verdict.figures["noise"] == pytest.approx(math.hypot(*noises))


def test_what_the_network_took_of_a_snapshot_is_a_median() -> None:
    assert snapshot(()).exchange_seconds == 0.0
    measured = (
        RoundMeasurement(1.0, 1, 1.0, 0.1),
        RoundMeasurement(1.0, 1, 1.0, 0.2),
        RoundMeasurement(1.0, 1, 1.0, 0.9),
    )
    assert snapshot(measured).exchange_seconds == pytest.approx(0.2)
