"""Which norms are refused, against what, and when the bound begins anew."""

import math

from hypergpu.coordinator.core.rounds.update_norms import FACTOR, HISTORY, LEAST_KNOWN, MOST_REFUSED, NormBound, Outlier


def bound_after(*norms: float, scale: float = 1.0) -> NormBound:
    bound = NormBound()
    for norm in norms:
        assert bound.judge(norm, scale) is None
    return bound


def test_nothing_is_refused_before_enough_is_known() -> None:
    assert bound_after(*[1.0] * (LEAST_KNOWN - 1)).judge(1e30, 1.0) is None
    assert bound_after(*[1.0] * LEAST_KNOWN).judge(1e30, 1.0) == Outlier(1e30, 20.0, 1.0)


def test_the_bound_is_a_multiple_of_the_median_and_belongs_to_what_is_accepted() -> None:
    known = (1.0, 2.0, 3.0, 100.0)  # the median is 2.5
    assert bound_after(*known).judge(2.5 * FACTOR, 1.0) is None
    refused = bound_after(*known).judge(math.nextafter(2.5 * FACTOR, math.inf), 1.0)
    assert refused is not None
    assert (refused.bound, refused.median) == (50.0, 2.5)


def test_norms_are_compared_per_step_of_learning() -> None:
    bound = bound_after(*[10 * 0.1] * LEAST_KNOWN, scale=10 * 0.1)
    assert bound.judge(20.0 * 40 * 0.1, 40 * 0.1) is None, "four times the steps, four times the change"
    refused = bound_after(*[1.0] * LEAST_KNOWN).judge(41.0, 2.0)
    assert refused == Outlier(41.0, 40.0, 2.0)


def test_the_median_is_of_the_latest() -> None:
    bound = bound_after(*[1.0] * HISTORY)
    for _ in range(HISTORY // 2 + 1):
        assert bound.judge(10.0, 1.0) is None
    assert bound.judge(200.0, 1.0) is None
    assert bound.judge(200.1, 1.0) is not None


def test_refused_norms_do_not_move_the_median() -> None:
    bound = bound_after(*[1.0] * LEAST_KNOWN)
    for _ in range(20):
        assert bound.judge(50.0, 1.0) is not None
        assert bound.judge(1.0, 1.0) is None, "an honest node in between"


def test_after_so_many_refusals_in_a_row_it_is_the_norms_that_have_changed() -> None:
    bound = bound_after(*[1.0] * LEAST_KNOWN)
    assert all(bound.judge(50.0, 1.0) is not None for _ in range(MOST_REFUSED))
    assert bound.judge(50.0, 1.0) is None
    for _ in range(LEAST_KNOWN - 1):
        assert bound.judge(60.0, 1.0) is None
    assert bound.judge(1001.0, 1.0) is None, "the median is 60 now"
    assert bound.judge(1201.0, 1.0) is not None


def test_norms_that_do_not_move_bound_nothing() -> None:
    bound = NormBound()
    assert all(bound.judge(0.0, 1.0) is None for _ in range(9))
    assert bound.judge(1e30, 1.0) is None
