"""Intervals cover the true mean as often as they say."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import binomtest

from hypergpu.simulation.statistics import Estimate, geometric_mean_of, mean_of, sign_test, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 199])
def test_quantiles_of_t_are_those_of_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(stdtrit(degrees, 0.975), rel=1e-12)
    assert t_quantile(degrees, 0.5) == pytest.approx(stdtrit(degrees, 0.75), rel=1e-12)


def test_an_interval_is_that_of_students_t() -> None:
    found = mean_of([1.0, 2.0, 4.0, 3.0, 2.5])
    half = 2.7764451051977987 * np.std([1.0, 2.0, 4.0, 3.0, 2.5], ddof=1) / math.sqrt(5)
    assert found.mean == pytest.approx(2.5)
    assert (found.ci_low, found.ci_high) == pytest.approx((2.5 - half, 2.5 + half))


def test_a_geometric_mean_is_the_same_whichever_run_is_the_numerator() -> None:
    ratios = [2.0, 0.5, 4.0, 1.0]
    found, inverse = geometric_mean_of(ratios), geometric_mean_of([1 / ratio for ratio in ratios])
    assert found.mean == pytest.approx(2**0.5)
    assert found.mean == pytest.approx(1 / (inverse.mean or math.nan))
    assert found.ci_low == pytest.approx(1 / (inverse.ci_high or math.nan))


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_intervals_of_log_normal_ratios_cover_the_truth_in_95_of_100(pairs: int, spread: float) -> None:
    """A percentile bootstrap over so few ratios covers 71 to 82 of 100."""
    draws, truth = 3000, 1.3
    ratios = truth * np.exp(np.random.default_rng(pairs).normal(0.0, spread, (draws, pairs)))
    intervals = [geometric_mean_of(row) for row in ratios.tolist()]
    covered = sum((each.ci_low or math.inf) <= truth <= (each.ci_high or 0.0) for each in intervals) / draws
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / draws))


def test_of_like_values_the_interval_is_a_point_and_of_few_there_is_none() -> None:
    assert mean_of([2.0, 2.0]) == Estimate(2.0, 2.0, 2.0)
    assert mean_of([2.0]) == geometric_mean_of([2.0]) == Estimate(2.0)
    assert mean_of([]) == geometric_mean_of([]) == Estimate()
    assert Estimate(2.0).to_dict() == {"mean": 2.0, "ci_low": None, "ci_high": None}


def test_a_time_of_nothing_is_taken_as_a_nanosecond() -> None:
    assert geometric_mean_of([0.0, 1.0]).mean == pytest.approx(1e-9**0.5)


@pytest.mark.parametrize(("ups", "downs"), [(0, 0), (1, 0), (5, 0), (6, 0), (9, 1), (8, 2), (3, 3), (1, 9)])
def test_splits_are_tested_exactly(ups: int, downs: int) -> None:
    expected = binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
    assert sign_test(ups, downs) == pytest.approx(expected)
