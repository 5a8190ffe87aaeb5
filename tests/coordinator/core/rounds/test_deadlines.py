"""Deadlines when payloads have another size than before."""

import pytest

from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator


def measured() -> DeadlineEstimator:
    estimator = DeadlineEstimator()
    for _ in range(3):
        estimator.observe("a", 10.0, compute_seconds=2.0, samples=8)
    return estimator


@pytest.mark.parametrize(("seconds", "usual"), [(0.0, 10.0), (-6.0, 4.0), (30.0, 40.0)])
def test_what_a_node_needs_follows_from_what_is_sent(seconds: float, usual: float) -> None:
    estimator = measured()
    estimator.shift("a", seconds)
    assert estimator.need("a", 8) == pytest.approx(1.5 * usual)
    assert estimator.deadline({"a": 8}).seconds == pytest.approx(1.5 * usual)


def test_a_round_does_not_become_shorter_than_its_computing() -> None:
    estimator = measured()
    estimator.shift("a", -9.0)
    assert estimator.need("a", 8) == pytest.approx(1.5 * 2.0)


def test_a_node_that_was_not_measured_is_left_alone() -> None:
    estimator = measured()
    estimator.shift("b", 5.0)
    assert estimator.need("b", 8) is None
