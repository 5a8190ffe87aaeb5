"""When a round has enough updates, on arrivals that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.coordinator.core.adaptation.enough import LEAST_SHARE, enough_share
from tests.examples import examples


def steady(*seconds: float) -> np.ndarray:
    return np.repeat(np.array(seconds)[:, None], 4, axis=1)


@pytest.mark.parametrize(
    ("seconds", "overhead", "noise", "expected"),
    [
        (steady(1, 1, 1, 1, 1), 0.0, 5.0, 1.0),
        (steady(1, 1, 1, 1, 4), 0.0, 5.0, 0.8),  # one node takes four times as long
        (steady(1, 1, 1, 1, 1.1), 0.0, 5.0, 1.0),  # a tenth longer: its work is worth it
        (steady(1, 1, 1, 1, 4), 60.0, 5.0, 1.0),  # next to what a round takes anyway, it is no wait
        (steady(1, 1, 9, 9, 9), 0.0, 5.0, 1.0),  # no fewer than the least share, and all are here by then
        (steady(9, 9, 1, 1, 1), 0.0, 5.0, 0.6),  # whoever they are
        (steady(1, 1, 1, 1.4, 1.4), 0.0, 0.01, 0.6),  # three say as much as five
        (steady(1, 1, 1, 1.4, 1.4), 0.0, 1e6, 1.0),  # five say five thirds of what three say
        (steady(2.0), 0.0, 1.0, 1.0),
        (np.zeros((0, 4)), 0.0, 1.0, 1.0),
        (steady(0, 0, 0), 0.0, 1.0, 1.0),
    ],
)
def test_waiting_ends_where_it_costs_more_than_it_adds(
    seconds: np.ndarray, overhead: float, noise: float, expected: float
) -> None:
    assert enough_share(seconds, overhead, noise) == pytest.approx(expected)


def test_a_different_node_may_be_slow_each_time() -> None:
    seconds = np.ones((8, 8)) + 9.0 * np.eye(8)  # any one of eight, by turns
    assert enough_share(seconds, 0.0, 8.0) == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("seconds", "noise", "max_staleness", "expected"),
    [
        (steady(1, 1, 1, 1, 1.2), 5.0, 0, 1.0),  # its work would be lost
        (steady(1, 1, 1, 1, 1.2), 5.0, 4, 0.8),  # it counts in the next round
        (steady(1, 1, 1, 1, 1), 5.0, 4, 1.0),
        (steady(1, 1, 1, 8, 8), 1e6, 16, 0.6),
        (steady(1, 1, 1, 1.6, 1.6), 20.0, 0, 1.0),
        (steady(1, 1, 1, 1.6, 1.6), 20.0, 1, 0.6),
    ],
)
def test_waiting_is_worth_less_where_late_updates_count(
    seconds: np.ndarray, noise: float, max_staleness: int, expected: float
) -> None:
    assert enough_share(seconds, 0.0, noise, max_staleness) == pytest.approx(expected)


@examples(80)
@given(
    st.lists(st.floats(0.01, 100.0), min_size=1, max_size=20), st.floats(0, 10), st.floats(0, 100), st.floats(0.1, 10)
)
def test_the_unit_of_time_does_not_matter(times: list[float], overhead: float, noise: float, unit: float) -> None:
    share = enough_share(steady(*times), overhead, noise)
    assert LEAST_SHARE <= share <= 1.0 or len(times) == 1
    scaled = enough_share(unit * steady(*times), unit * overhead, noise)
    assert scaled == pytest.approx(share) or abs(scaled - share) >= 1 / len(times), "up to ties"
