"""Timeouts of a node's calls, for rounds of a second and of hours."""

import math

import pytest

from hypergpu.node.core.timeouts import chunk_timeout_seconds, heartbeat_timeout_seconds, push_timeout_seconds


@pytest.mark.parametrize(("deadline", "seconds"), [(0.0, 60.0), (30.0, 60.0), (31.0, 62.0), (3600.0, 7200.0)])
def test_a_push_may_take_twice_what_is_left_of_the_round(deadline: float, seconds: float) -> None:
    assert push_timeout_seconds(deadline) == seconds


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [(0.0, 30.0), (30.0, 30.0), (3600.0, 3600.0), (math.inf, 86_400.0), (math.nan, 30.0), (-1.0, 30.0)],
)
def test_a_chunk_may_take_what_is_left_of_the_round(deadline: float, seconds: float) -> None:
    assert chunk_timeout_seconds(deadline) == seconds


@pytest.mark.parametrize(("period", "seconds"), [(0.05, 5.0), (2.5, 5.0), (60.0, 120.0)])
def test_a_heartbeat_may_take_two_periods(period: float, seconds: float) -> None:
    assert heartbeat_timeout_seconds(period) == seconds
