"""Budgets of calls: never more than the burst and the rate permit, whatever the order of calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.token_bucket import Bucket, Budget, Budgets, spend

TWO = Budget(rate=2.0, burst=3.0)


def test_a_burst_then_the_rate() -> None:
    bucket, waits = None, []
    for now in (0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.5, 100.0, 100.0, 100.0, 100.0):
        bucket, wait = spend(bucket, TWO, now)
        waits.append(wait)
    assert waits == [0, 0, 0, 0.5, 0.25, 0, 0.5, 0, 0, 0, 0.5]


@given(st.lists(st.floats(0.0, 5.0), max_size=100))
def test_no_window_has_more_calls_than_the_budget(pauses: list[float]) -> None:
    bucket, now, permitted = None, 0.0, []
    for pause in pauses:
        now += pause
        bucket, wait = spend(bucket, TWO, now)
        assert 0.0 <= bucket.left <= TWO.burst
        if not wait:
            permitted.append(now)
    for first in range(len(permitted)):
        for last in range(first, len(permitted)):
            seconds = permitted[last] - permitted[first]
            assert last - first + 1 <= TWO.burst + TWO.rate * seconds + 1e-6


def test_whoever_waits_as_told_is_permitted() -> None:
    bucket, wait = spend(Bucket(0.0, 10.0), TWO, 10.0)
    assert wait == pytest.approx(0.5)
    assert spend(bucket, TWO, 10.0 + wait)[1] == 0.0


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    bucket, _ = spend(Bucket(1.0, 10.0), TWO, 9.0)
    assert bucket == Bucket(0.0, 10.0)


def test_callers_do_not_share_a_bucket_and_memory_is_bounded() -> None:
    budgets = Budgets(limit=100)
    one = Budget(rate=1.0, burst=1.0)
    assert [budgets.spend(name, one, 0.0) for name in ("a", "a", "b")] == [0.0, 1.0, 0.0]
    for number in range(1000):
        assert budgets.spend(number, one, 0.0) == 0.0
        assert budgets.spend("a", one, 0.0) > 0.0, "a caller that goes on is not forgotten"
    assert len(budgets._buckets) == 100
