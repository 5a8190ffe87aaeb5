"""The rate of a link follows from its transfers, and a short transfer is a lower bound."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.transfer_meter import Transfer, TransferMeter
from hypergpu.coordinator.core.links.rates import (
    INITIAL_WINDOW_BYTES,
    TOLERANCE,
    UNKNOWN_RATE,
    WINDOW,
    LinkRate,
    RateEstimator,
    rate_bounds,
)

MEGABYTE = 1_000_000
ROUND_TRIP = 0.1


def arrived_at(nbytes: int, rate: float, round_trip: float) -> float:
    """Return when so many bytes have arrived since the first one, over a new connection."""
    window, left, seconds = float(INITIAL_WINDOW_BYTES), float(nbytes), 0.0
    while left > window and window < rate * round_trip:
        left, seconds, window = left - window, seconds + round_trip, 2 * window
    return seconds + left / rate


def measured(rate: float) -> Transfer:
    """Return a transfer at this rate that is long enough to measure it."""
    return Transfer(int(10 * rate), 10.0, int(10 * rate))


def estimate(*transfers: Transfer, round_trip: float = 0.01) -> LinkRate:
    estimator = RateEstimator()
    for at, transfer in enumerate(transfers):
        estimator.record(transfer, float(at))
    return estimator.estimate(round_trip)


# ------------------------------------------------------------ bounds


def test_the_window_that_fills_the_line_leaves_no_doubt() -> None:
    bounds = rate_bounds(Transfer(2 * MEGABYTE, 2.0, MEGABYTE), ROUND_TRIP)  # 0.5 MB of window, 0.1 MB on the line
    assert bounds == (MEGABYTE, MEGABYTE)
    assert bounds.is_measurement
    assert bounds.middle == MEGABYTE


def test_slow_start_leaves_a_doubt_as_large_as_what_it_may_have_cost() -> None:
    # Window of 10 segments: 14,480 bytes in the first round trip of 0.1 s, 28,960 in the second, then enough.
    nbytes = 14_480 + 28_960 + 500_000
    bounds = rate_bounds(Transfer(nbytes, 2 * ROUND_TRIP + 1.0), ROUND_TRIP)
    assert bounds.high == pytest.approx(500_000.0)
    assert bounds.low == pytest.approx(nbytes / 1.2)
    assert not rate_bounds(Transfer(nbytes, 1.2), 0.3).is_measurement


def test_a_transfer_that_never_left_slow_start_is_a_lower_bound() -> None:
    bounds = rate_bounds(Transfer(60_000, 0.2), ROUND_TRIP)
    assert bounds == (300_000, math.inf)
    assert not bounds.is_measurement
    assert bounds.middle == 300_000


def test_a_window_that_fills_the_line_exactly_has_stopped_growing() -> None:
    filled = rate_bounds(Transfer(1_448_000, 10.0), ROUND_TRIP)  # 144,800 × 0.1 s = the initial window
    assert filled == (144_800, 144_800)
    doubled = rate_bounds(Transfer(1_448_010, 10.0), ROUND_TRIP)
    assert doubled.high == pytest.approx((1_448_010 - 14_480) / 9.9)


def test_fewer_bytes_than_the_initial_window_measure_no_rate() -> None:
    assert rate_bounds(Transfer(14_480, 1.0), ROUND_TRIP) == (14_480, 14_480)
    assert rate_bounds(Transfer(14_479, 1.0), ROUND_TRIP) == (14_479, math.inf)


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_what_arrives_at_once_is_a_lower_bound(seconds: float) -> None:
    assert rate_bounds(Transfer(1_000, seconds), ROUND_TRIP) == (1_000_000, math.inf)


def test_without_a_round_trip_what_arrived_before_bounds_it() -> None:
    steady = Transfer(2 * MEGABYTE, 2.0, MEGABYTE, 1.0)  # 4 windows of 14,480 bytes send 1 MB in 5 flights
    assert rate_bounds(steady, math.nan) == (MEGABYTE, MEGABYTE)
    assert rate_bounds(steady._replace(seconds=1.0), math.nan) == (2 * MEGABYTE, 2 * MEGABYTE)
    assert rate_bounds(steady._replace(seconds=0.8), math.nan).high == pytest.approx(1_500_000 / 0.55)
    assert rate_bounds(steady._replace(seconds=0.5), math.nan) == (4 * MEGABYTE, math.inf), "it may grow on"
    assert rate_bounds(Transfer(2 * MEGABYTE, 2.0), math.nan) == (MEGABYTE, math.inf)
    assert rate_bounds(Transfer(2 * MEGABYTE, 2.0, 50_000, 0.05), math.nan) == (MEGABYTE, math.inf), "one flight"
    assert rate_bounds(steady, 9.0) == (MEGABYTE, MEGABYTE), "the round trip was measured behind a transfer"


def test_a_transfer_no_longer_than_jitter_is_no_measurement() -> None:
    transfer = Transfer(MEGABYTE, 1.0, MEGABYTE)
    assert rate_bounds(transfer, ROUND_TRIP, 0.1).is_measurement
    assert not rate_bounds(transfer, ROUND_TRIP, 0.2).is_measurement
    assert rate_bounds(transfer, ROUND_TRIP, math.nan).is_measurement


def test_bounds_count_as_a_measurement_up_to_the_tolerance() -> None:
    bounds = rate_bounds(Transfer(MEGABYTE, 1.0), ROUND_TRIP)
    assert bounds.low == MEGABYTE
    assert bounds.is_measurement is (bounds.high <= TOLERANCE * MEGABYTE)


@given(
    rate=st.floats(6e4, 1.25e8),
    round_trip=st.floats(0.001, 0.5),
    nbytes=st.integers(10_000, 500 * MEGABYTE),
)
def test_the_bounds_hold_the_rate_of_any_slow_start(rate: float, round_trip: float, nbytes: int) -> None:
    bounds = rate_bounds(Transfer(nbytes, arrived_at(nbytes, rate, round_trip)), round_trip)
    assert bounds.low <= rate * 1.0001
    assert bounds.high >= rate * 0.9999
    if bounds.is_measurement:
        assert bounds.middle == pytest.approx(rate, rel=0.075)


# ------------------------------------------------------------ estimates


def test_nothing_is_known_before_a_transfer() -> None:
    assert estimate() == UNKNOWN_RATE
    assert math.isnan(UNKNOWN_RATE.rate)
    assert math.isnan(UNKNOWN_RATE.at_least)


def test_the_rate_is_a_median_with_half_the_interquartile_range() -> None:
    first = measured(10_000.0)
    rate = estimate(first, *[measured(each) for each in (10_000.0, 10_200.0, 11_000.0, 10_400.0, 4_000.0)])
    assert (rate.rate, rate.spread, rate.measured_at) == (10_200.0, 200.0, 5.0)
    assert rate.at_least == 11_000.0


def test_the_first_transfer_counts_until_a_second_one_has_measured_the_rate() -> None:
    fast, usual, short = measured(2e6), measured(1e6), Transfer(60_000, 0.2)
    assert (estimate(fast).rate, estimate(fast).is_provisional) == (2e6, True)
    found = estimate(fast, usual)
    assert (found.rate, found.at_least, found.is_provisional) == (1e6, 1e6, False)
    assert estimate(fast, short, round_trip=0.1).rate == 2e6, "a bound measures nothing"
    assert estimate(fast, usual, fast).rate == pytest.approx(1.5e6), "only the first of all"


def test_the_transfer_before_a_restart_counts_until_the_next_one() -> None:
    estimator = RateEstimator()
    for at in range(3):
        estimator.record(measured(1e6), float(at))
    assert not estimator.estimate(0.01).is_provisional
    estimator.restart()
    assert (estimator.estimate(0.01).rate, estimator.estimate(0.01).is_provisional) == (1e6, True)
    estimator.record(measured(1.2e6), 3.0)
    assert (estimator.estimate(0.01).rate, estimator.estimate(0.01).is_provisional) == (1.2e6, False)


def test_only_the_latest_transfers_count() -> None:
    rates = [10_000.0 + 100.0 * at for at in range(WINDOW + 1)]
    assert estimate(*map(measured, rates)).rate == 10_450.0


def test_short_transfers_give_a_lower_bound() -> None:
    rate = estimate(Transfer(60_000, 0.2), Transfer(60_000, 0.21), round_trip=0.1)
    assert math.isnan(rate.rate)
    assert math.isnan(rate.spread)
    assert (rate.at_least, rate.measured_at) == (300_000, 1.0)


def test_a_lower_bound_counts_where_it_proves_the_estimate_too_low() -> None:
    slow, short = measured(100_000.0), Transfer(60_000, 0.2)
    assert estimate(slow, Transfer(6_000, 0.25), round_trip=0.1).rate == 100_000
    assert estimate(slow, short, round_trip=0.1).rate == 200_000  # between 100,000 and at least 300,000


@pytest.mark.parametrize("factor", [0.5, 1 / 1.51, 1.51, 2.0])
@pytest.mark.parametrize("before", [1, 2, 6])
def test_a_change_of_the_rate_is_seen_after_two_transfers(factor: float, before: int) -> None:
    known = [measured(1e6)] * before
    assert estimate(*known, measured(1e6 * factor), measured(1e6 * factor)).rate == pytest.approx(1e6 * factor)


@pytest.mark.parametrize("factor", [1 / 1.49, 1.49])
def test_a_small_change_moves_the_median_only(factor: float) -> None:
    assert estimate(*[measured(1e6)] * 4, *[measured(1e6 * factor)] * 2).rate == 1e6


def test_one_transfer_in_an_outage_is_no_change() -> None:
    assert estimate(*[measured(1e6)] * 3, measured(1e4)).rate == 1e6
    assert estimate(*[measured(1e6)] * 3, measured(1e4), measured(1e6), measured(1e4)).rate == 1e6


def test_a_rate_that_returns_is_seen_after_two_transfers() -> None:
    collapsed = [*[measured(1e6)] * 4, *[measured(1e5)] * 4]
    assert estimate(*collapsed).rate == 1e5
    assert estimate(*collapsed, measured(1e6), measured(1e6)).rate == 1e6


def test_a_collapse_counts_after_transfers_that_were_too_short_to_measure() -> None:
    short = Transfer(60_000, 0.06)
    rate = estimate(short, short, measured(1e4), measured(1e4), round_trip=0.1)
    assert (rate.rate, rate.at_least) == (1e4, 1e4)
    assert estimate(short, short, measured(1e4), round_trip=0.1).at_least == pytest.approx(1e6)


def test_transfers_too_short_to_measure_show_that_the_rate_has_risen() -> None:
    short = Transfer(60_000, 0.06)
    assert math.isnan(estimate(*[measured(1e5)] * 4, short, short, round_trip=0.1).rate)
    assert estimate(*[measured(1e5)] * 4, short, short, round_trip=0.1).at_least == pytest.approx(1e6)


def test_the_round_trip_may_become_known_later() -> None:
    estimator = RateEstimator()
    estimator.record(Transfer(2 * MEGABYTE, 2.0, 50_000, 0.05), 7.0)
    assert math.isnan(estimator.estimate(math.nan).rate)
    assert estimator.estimate(0.01) == LinkRate(MEGABYTE, 0.0, MEGABYTE, 7.0, is_provisional=True)


def test_a_round_trip_that_has_changed_changes_the_estimate() -> None:
    estimator = RateEstimator()
    estimator.record(Transfer(200_000, 2.0), 7.0)
    rates = [estimator.estimate(each).rate for each in (0.2, 0.21, 0.23, 0.2)]
    assert rates[0] == rates[1] == rates[3] != rates[2], "a new estimate for a change of more than a tenth"
    assert math.isnan(estimator.estimate(math.nan).rate)
    assert estimator.estimate(0.2).rate == rates[0]


@given(
    rate=st.floats(62_500.0, 1.25e8),  # 0.5 to 1,000 Mbit/s
    model=st.integers(4 * MEGABYTE, 50 * MEGABYTE),
    round_trip=st.floats(0.001, 0.2),
    noise=st.lists(st.floats(-0.08, 0.08), min_size=3, max_size=3),
)
def test_the_rate_is_within_10_percent_after_three_rounds(
    rate: float, model: int, round_trip: float, noise: list[float]
) -> None:
    estimator = RateEstimator()
    for at, each in enumerate(noise):
        meter = TransferMeter(0.0)
        for end in [*range(1 << 20, model, 1 << 20), model]:
            meter.piece((end - 1) % (1 << 20) + 1, (1 + each) * arrived_at(end, rate, round_trip))
        assert meter.measured is not None
        estimator.record(meter.measured, float(at))
    found = estimator.estimate(round_trip)
    if model / rate > max(0.05, 20 * round_trip):
        assert found.rate == pytest.approx(rate, rel=0.1)
    else:
        assert found.at_least <= 1.1 * rate
