"""Robust statistics against numpy, and against each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.statistics import (
    FULL_TREND,
    MAD_TO_SIGMA,
    mann_kendall,
    mann_kendall_rows,
    median_and_mad,
    quantiles,
    robust_sigma,
)

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(VALUES)
def test_median_and_mad_are_those_of_numpy(values: list[float]) -> None:
    centre, spread = median_and_mad(values)
    assert centre == pytest.approx(np.median(values))
    assert spread == pytest.approx(np.median(np.abs(np.array(values) - np.median(values))))
    assert robust_sigma(np.array(values)) == pytest.approx(MAD_TO_SIGMA * spread)


def test_the_median_of_nothing_is_an_error() -> None:
    with pytest.raises(IndexError):
        median_and_mad([])


@given(st.lists(st.integers(-1000, 1000), min_size=6, max_size=FULL_TREND, unique=True))
def test_trends_of_rows_and_of_a_series_agree_without_ties(values: list[int]) -> None:
    row = np.full((1, FULL_TREND), np.nan)
    row[0, FULL_TREND - len(values) :] = values
    assert mann_kendall_rows(row)[0] == pytest.approx(mann_kendall(values))


@given(VALUES, st.integers(0, 5))
def test_quantiles_leave_nan_out(values: list[float], missing: int) -> None:
    row = np.array([*[np.nan] * missing, *values])[None, :]
    wanted = [0.0, 0.25, 0.5, 0.95, 1.0]
    assert quantiles(row, wanted)[:, 0] == pytest.approx(np.quantile(values, wanted), rel=1e-9, abs=1e-6)
    assert np.isnan(quantiles(np.full((1, 3), np.nan), [0.5])).all()
