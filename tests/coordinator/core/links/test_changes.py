"""Changes of a link are seen in its round trips, and jitter is none."""

import numpy as np
import pytest

from hypergpu.coordinator.core.links.changes import find_changes, find_returns
from hypergpu.coordinator.core.node_arrays import Floats
from hypergpu.netsim_proxy.link.profiles import PROFILES

LENGTH = 64


def window(*values: float) -> Floats:
    """Return the round trips of one link, padded with NaN in front."""
    return np.array([[*[np.nan] * (LENGTH - len(values)), *values]])


def change(*values: float) -> tuple[int, float, float]:
    since, low, high = find_changes(window(*values))
    return int(since[0]), float(low[0]), float(high[0])


@pytest.mark.parametrize(("before", "fewest"), [(61, 3), (8, 3), (7, 4), (6, 4), (5, 5), (4, 6), (3, 8)], ids=str)
def test_the_fewer_are_known_the_more_new_round_trips_show_a_change(before: int, fewest: int) -> None:
    known = [20.0 + at for at in range(before)]
    for count in range(1, fewest):
        assert change(*known, *[400.0] * count)[0] == 0
    assert change(*known, *[400.0] * fewest) == (fewest, 20.0, 19.0 + before)
    assert change(*[400.0 + at for at in range(before)], *[20.0] * fewest) == (fewest, 400.0, 399.0 + before)


def test_too_few_are_known_to_tell() -> None:
    assert change(20.0, 21.0, *[400.0] * 8)[0] == 0
    assert change()[0] == 0


@pytest.mark.parametrize(("latest", "found"), [(30.0, 0), (30.01, 3), (6.66, 3), (6.67, 0)])
def test_a_change_is_by_half_or_more_beyond_all_that_was_before(latest: float, found: int) -> None:
    assert change(*np.linspace(10.0, 20.0, 20).tolist(), *[latest] * 3)[0] == found


def test_one_round_trip_in_the_old_range_is_no_change() -> None:
    assert change(*[20.0] * 20, 400.0, 20.0, 400.0)[0] == 0


def test_each_link_is_judged_for_itself() -> None:
    values = np.concatenate(
        [window(*[20.0] * 20, *[400.0] * 3), window(*[20.0] * 23), window(*[400.0] * 8, 1, 1, 1, 1)]
    )
    since, low, _ = find_changes(values)
    assert since.tolist() == [3, 0, 4]
    assert (low[0], low[2]) == (20.0, 400.0)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_jitter_of_a_shipped_profile_seldom_looks_like_a_change(profile: str) -> None:
    """Stated rate: at most one false alarm in 500 round trips of a link whose history is as long as the default."""
    draws = np.random.default_rng(5).uniform(size=(2, 4000, LENGTH))
    up, down = PROFILES[profile].up.latency, PROFILES[profile].down.latency
    values = np.vectorize(up.at)(draws[0]) + np.vectorize(down.at)(draws[1])
    since, _, _ = find_changes(values)
    assert (since > 0).mean() <= 1 / 500


# ---------------------------------------------------------------- returns


def returned(before: tuple[float, float], *values: float) -> tuple[bool, float, float]:
    mask, low, high = find_returns(window(*values), np.array([before[0]]), np.array([before[1]]))
    return bool(mask[0]), float(low[0]), float(high[0])


def test_two_round_trips_show_that_a_change_is_over() -> None:
    assert returned((20.0, 30.0), 400.0, 410.0, 405.0, 30.0, 20.0) == (True, 400.0, 410.0)
    assert returned((400.0, 500.0), 20.0, 22.0, 400.0, 500.0) == (True, 20.0, 22.0)


@pytest.mark.parametrize("latest", [(400.0, 20.0), (20.0, 400.0), (31.0, 20.0), (270.0, 270.0)], ids=str)
def test_it_takes_both_and_the_range_of_before(latest: tuple[float, float]) -> None:
    assert not returned((20.0, 30.0), 400.0, 410.0, 405.0, *latest)[0]


def test_without_a_change_there_is_no_return() -> None:
    assert not returned((np.nan, np.nan), 400.0, 410.0, 20.0, 20.0)[0]
    assert not returned((10.0, 30.0), 20.0, 20.0)[0]
