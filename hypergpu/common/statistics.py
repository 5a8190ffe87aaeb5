"""Robust statistics: medians, quantiles and trends, which outliers hardly change."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MAD_TO_SIGMA: Final = 1.4826
"""Standard deviation of normal data, in median absolute deviations (1 / Φ⁻¹(¾))."""
MEDIAN_ERROR: Final = 1.2533
"""Standard error of a median, relative to that of a mean, for normal data (√(π/2))."""
_MOST_POINTS = 200
"""Points of a series whose pairs are all compared; a longer series is condensed first."""
FULL_TREND = 16
"""Values per row that `mann_kendall_rows` uses."""
_LATER = np.triu(np.ones((FULL_TREND, FULL_TREND))) - np.tril(np.ones((FULL_TREND, FULL_TREND)))
"""Sign of each pair of places: 1 if the second is later, -1 if it is earlier."""


def finite(values: Sequence[float]) -> Floats:
    """Return the values that are finite, as an array."""
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return count, mean, std, min, max, median, p95, p99 and last; only the count of an empty series."""
    array = finite(values)
    if not len(array):
        return {"count": 0}
    median, p95, p99 = np.quantile(array, (0.5, 0.95, 0.99))
    with np.errstate(over="ignore"):  # a loss on its way to infinity
        mean, std = float(array.mean()), float(array.std())
    return {
        "count": len(array),
        "mean": mean,
        "std": std,
        "min": float(array.min()),
        "max": float(array.max()),
        "median": float(median),
        "p95": float(p95),
        "p99": float(p99),
        "last": float(array[-1]),
    }


def theil_sen(values: Sequence[float]) -> float:
    """Return the median of the slopes between all pairs, per value; 0 for fewer than two values.

    P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 1968.
    """
    array, step = _condensed(finite(values))
    if len(array) < 2:
        return 0.0
    first, second = np.triu_indices(len(array), 1)
    return float(np.median((array[second] - array[first]) / (second - first))) / step


def mann_kendall(values: Sequence[float]) -> float:
    """Return the standard normal score of a monotonic trend, positive for a rise; 0 for fewer than four values.

    H. B. Mann, "Nonparametric tests against trend", Econometrica 1945, with the usual correction for ties.
    """
    array, _ = _condensed(finite(values))
    n = len(array)
    if n < 4:
        return 0.0
    first, second = np.triu_indices(n, 1)
    s = float(np.sign(array[second] - array[first]).sum())
    ties = np.unique(array, return_counts=True)[1]
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0 or s == 0:
        return 0.0
    return (s - math.copysign(1, s)) / math.sqrt(variance)


def _condensed(array: Floats) -> tuple[Floats, int]:
    """Return medians of blocks, and the length of a block: few enough for all pairs to be compared."""
    step = math.ceil(len(array) / _MOST_POINTS)
    if step <= 1:
        return array, 1
    whole = len(array) // step * step
    blocks: Floats = np.median(array[len(array) - whole :].reshape(-1, step), axis=1)
    return blocks, step


def trend(values: Sequence[float], *, less_is_better: bool, significance: float = 1.96) -> str:
    """Return `improving`, `degrading` or `stable`, by the Mann–Kendall test."""
    score = mann_kendall(values)
    if abs(score) < significance:
        return "stable"
    return "improving" if (score < 0) == less_is_better else "degrading"


def median_and_mad(values: Iterable[float]) -> tuple[float, float]:
    """Return the median, and the median distance from it.

    Plain Python: for the few values of one node it is ten times as fast as numpy.

    Raises:
        IndexError: there are no values.
    """
    ordered = sorted(values)
    centre = _median(ordered)
    return centre, _median(sorted([abs(value - centre) for value in ordered]))


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def robust_sigma(values: Floats) -> float:
    """Return the standard deviation that the median absolute deviation suggests."""
    return MAD_TO_SIGMA * float(np.median(np.abs(values - float(np.median(values)))))


def mann_kendall_rows(window: Floats) -> Floats:
    """Return the Mann–Kendall statistic z of each row, oldest value first: above 1.96 it rises, below −1.96 it falls.

    Up to FULL_TREND values; NaN in front stands for missing ones. (Mann, "Nonparametric tests against trend",
    Econometrica 1945.)
    """
    count = (~np.isnan(window)).sum(axis=1)
    width = window.shape[1]
    rises = window[:, :, None] < window[:, None, :]
    statistic = rises.reshape(len(window), width * width) @ _LATER[:width, :width].ravel()
    variance = count * (count - 1) * (2 * count + 5) / 18.0
    continuity = statistic - np.sign(statistic)
    return np.where(count >= 6, continuity / np.sqrt(np.maximum(variance, 1.0)), 0.0)


def quantiles(values: Floats, wanted: Sequence[float]) -> Floats:
    """Quantiles of each row by linear interpolation, NaN left out: shape (len(wanted), rows); NaN for an empty row."""
    ordered = np.sort(values, axis=1)  # NaN sorts last
    counts = values.shape[1] - np.isnan(values).sum(axis=1)
    every = np.arange(len(counts))
    last = np.maximum(counts - 1, 0)
    result = np.empty((len(wanted), len(counts)))
    for at, share in enumerate(wanted):
        place = share * last
        low = place.astype(np.int64)
        high = np.minimum(low + 1, last)
        below = ordered[every, low]
        result[at] = below + (place - low) * (ordered[every, high] - below)
    return result
