import pytest

from hypergpu.simulation.statistics import Estimate, estimate


def test_the_interval_holds_the_mean_and_is_the_same_again() -> None:
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    found = estimate(values)
    assert found == estimate(values)
    assert found.mean == pytest.approx(2.5)
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert 1.0 < found.ci_low < 2.5 < found.ci_high < 4.0


def test_of_like_values_the_interval_is_a_point_and_of_none_nothing_is_known() -> None:
    assert estimate([2.0, 2.0]) == Estimate(2.0, 2.0, 2.0)
    assert estimate([]) == Estimate(None, None, None)
