"""Drift from norms of updates whose common and own parts are known."""

import math

import numpy as np
import pytest

from hypergpu.coordinator.core.batching.drift import DriftEstimator, SaturationEstimator


def norms(common: float, own: float, nodes: int, size: int = 4000) -> tuple[float, float]:
    """Return (mean |update|², |mean update|²) of updates with a common part and one that differs on every node."""
    draws = np.random.default_rng(0)
    shared = np.zeros(size)
    shared[0] = common
    updates = shared + draws.normal(0.0, own / np.sqrt(size), (nodes, size))
    return float((updates**2).sum(axis=1).mean()), float((updates.mean(axis=0) ** 2).sum())


@pytest.mark.parametrize(("own", "steps", "expected"), [(1.0, 10, 24.1), (3.0, 10, 4.6), (0.1, 10, 1990.0)])
def test_the_more_nodes_pull_apart_the_fewer_steps_pay(own: float, steps: int, expected: float) -> None:
    drift = DriftEstimator()
    drift.observe(*norms(1.0, own, 1000), 1000, steps)
    assert drift.value(prior=1.0) == pytest.approx(expected, rel=0.15)


def test_before_a_measurement_and_from_useless_ones_the_prior_holds() -> None:
    drift = DriftEstimator()
    drift.observe(1.0, 1.0, 1, 10)  # one node agrees with itself
    drift.observe(float("nan"), 1.0, 4, 10)
    drift.observe(0.0, 0.0, 4, 10)
    assert drift.value(prior=40.0) == 40.0
    drift.observe(2.0, 1.0, 4, 10)
    half = drift.value(prior=40.0)
    drift.observe(2.0, 0.02, 4, 10)
    assert 1.0 < drift.value(prior=40.0) < half, "the past counts as much as the latest round"


def test_local_work_is_done_after_as_many_steps_as_its_loss_says() -> None:
    saturation = SaturationEstimator()
    assert saturation.value() == math.inf
    saturation.observe([1.0, 1.2, 0.9], 10)  # most did not learn
    saturation.observe([], 10)
    assert saturation.value() == math.inf
    saturation.observe([math.exp(-0.5), math.exp(-0.45), math.exp(-0.4), 2.0], 10)
    assert saturation.value() == pytest.approx(10 / 0.45)
    saturation.observe([math.exp(-4.5)] * 3, 10)
    assert saturation.value() == pytest.approx(math.sqrt(10 / 0.45 * 10 / 4.5))
