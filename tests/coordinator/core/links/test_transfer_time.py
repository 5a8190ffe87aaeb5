"""Time of a transfer by its rate, against the rates that are measured of such a transfer."""

import numpy as np
import pytest

from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.links.rates import rate_bounds
from hypergpu.coordinator.core.links.transfer_time import transfer_seconds


def seconds(nbytes: float, rate: float, round_trip: float) -> float:
    return float(transfer_seconds(np.array([nbytes]), np.array([rate]), np.array([round_trip]))[0])


def test_without_a_round_trip_only_the_rate_counts() -> None:
    assert seconds(5e6, 1e6, 0.0) == 5.0
    assert seconds(5e6, 1e6, np.nan) == 5.0


def test_slow_start_costs_round_trips_until_the_window_fills_the_line() -> None:
    # 125,000 bytes are under way at the line's rate: four doublings of 14,480 bytes.
    assert seconds(44e6, 2.5e6, 0.05) == pytest.approx((44e6 - 15 * 14480) / 2.5e6 + 4 * 0.05)
    # Two flights carry 43,440 bytes, so 40,000 need one round trip between them.
    assert seconds(40_000, 2.5e6, 0.05) == pytest.approx((40_000 - 14480) / 2.5e6 + 0.05)
    assert seconds(10_000, 2.5e6, 0.05) == pytest.approx(10_000 / 2.5e6)


def test_bytes_saved_of_a_long_transfer_save_their_time_at_the_rate() -> None:
    assert seconds(44e6, 2.5e6, 0.05) - seconds(11e6, 2.5e6, 0.05) == pytest.approx(33e6 / 2.5e6)


def test_an_unknown_rate_leaves_the_time_unknown() -> None:
    assert np.isnan(seconds(1e6, np.nan, 0.05))


@pytest.mark.parametrize("rate", [2e5, 2e6, 2e7])
@pytest.mark.parametrize("round_trip", [0.0, 0.02, 0.2])
def test_it_inverts_the_measurement(rate: float, round_trip: float) -> None:
    nbytes = 40_000_000
    bounds = rate_bounds(Transfer(nbytes, seconds(nbytes, rate, round_trip)), round_trip)
    assert bounds.high == pytest.approx(rate, rel=0.01)
