import pytest

from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.time_to_target import Course, compare_times

MSE = MetricSpec(name="mse", better="lower")


def course(*values: float, step: float = 10.0, losses: tuple[float, ...] = ()) -> Course:
    points = [(step * number, value) for number, value in enumerate(values, 1)]
    return Course(points, step * max(len(values), len(losses)), [(step * n, v) for n, v in enumerate(losses, 1)])


def test_lower_is_reached_from_above() -> None:
    found = compare_times(MSE, 0.5, course(0.9, 0.5, 0.1), course(0.9, 0.6, 0.51, 0.5))
    assert (found.run_seconds, found.baseline_seconds, found.speedup, found.is_bound) == (20.0, 40.0, 2.0, False)
    assert found.sentence == "This run reached mse 0.5 after 20.0 s, the baseline after 40.0 s: 2.00 times sooner."


def test_one_that_never_reached_the_target_bounds_the_speedup() -> None:
    found = compare_times(ACCURACY, 0.9, course(0.5, 0.9), course(0.5, 0.6, 0.7))
    assert (found.target, found.speedup, found.is_bound) == (0.9, 30.0 / 20.0, True)
    assert found.sentence == "This run reached accuracy 90.0 % after 20.0 s; the baseline never did, in 30.0 s."
    short = compare_times(ACCURACY, 0.9, course(0.5, 0.6, 0.9), course(0.5))
    assert short.speedup == 1.0  # a baseline that was shorter than the run tells no more
    behind = compare_times(ACCURACY, 0.9, course(0.5, 0.6), course(0.5, 0.6, 0.9))
    assert behind.speedup == 1.0
    assert behind.sentence == "The baseline reached accuracy 90.0 % after 30.0 s; this run never did, in 20.0 s."


@pytest.mark.parametrize(
    ("metric", "mine", "theirs", "target"),
    [
        (ACCURACY, (0.5, 0.8), (0.3, 0.5, 0.6), 0.6),
        (MSE, (0.5, 0.2), (0.5, 0.5, 0.4), 0.4),
        (MetricSpec(name="neg"), (-9.0, -3.0), (-9.0, -9.0, -5.0), -5.0),
    ],
)
def test_a_target_that_nobody_reached_still_has_a_verdict(
    metric: MetricSpec, mine: tuple[float, ...], theirs: tuple[float, ...], target: float
) -> None:
    wanted = 0.0 if metric is MSE else 0.99
    found = compare_times(metric, wanted, course(*mine), course(*theirs), names=("A", "B"))
    assert (found.target, found.run_seconds, found.baseline_seconds) == (target, 20.0, 30.0)
    bests = f"{metric.text(metric.best(mine))} and {metric.text(target)}"
    start = f"Neither run reached the target of {metric.text(wanted)} (best: {bests})."
    assert (
        found.sentence == f"{start} A reached {metric.label(target)} after 20.0 s, B after 30.0 s: 1.50 times sooner."
    )


def test_a_target_of_zero_is_a_target() -> None:
    found = compare_times(MetricSpec(name="r2"), 0.0, course(-1.0, 0.0), course(-1.0, -0.5, 0.2))
    assert (found.target, found.run_seconds, found.baseline_seconds) == (0.0, 20.0, 30.0)


def test_runs_whose_metric_is_undefined_are_compared_by_their_loss() -> None:
    found = compare_times(ACCURACY, 0.9, course(losses=(2.0, 1.0)), course(losses=(2.0, 1.5, 1.2)))
    assert (found.timed_by, found.target, found.speedup) == (LOSS, 1.2, 1.5)
    assert found.sentence.startswith("The accuracy is undefined, so their loss is compared. This")
    assert "loss 1.2 after 20.0 s" in found.sentence
    nothing = compare_times(ACCURACY, 0.9, course(), course(0.5))
    assert (nothing.target, nothing.speedup) == (None, None)
    assert nothing.sentence == "The accuracy was not measured in both runs, so no times can be compared."


def test_a_run_that_is_judged_by_its_loss() -> None:
    found = compare_times(LOSS, None, course(losses=(2.0, 1.0)), course(losses=(2.0, 1.5, 1.2)))
    assert (found.timed_by, found.target, found.speedup) == (LOSS, 1.2, 1.5)
    assert found.sentence.startswith("This run reached loss 1.2")


@pytest.mark.parametrize(("theirs", "alike"), [(10.0, True), (10.2, True), (10.3, False), (9.7, False)])
def test_times_within_two_percent_are_alike(theirs: float, alike: bool) -> None:
    found = compare_times(ACCURACY, 0.5, course(0.5), course(0.5, step=theirs))
    assert ("Both runs reached" in found.sentence) is alike
