"""Summaries that outliers do not bend: quantiles, trends and anomalies of a short series."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_NORMAL_QUANTILE = NormalDist().inv_cdf(0.75)
"""MAD / 0.6745 estimates the standard deviation of normal data."""


def finite(values: Sequence[float]) -> Floats:
    """The values that are numbers, as an array."""
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Count, mean, std, min, max, median, p95, p99 and last; only the count where there is nothing."""
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
    """The median of the slopes between all pairs, per step; 0 for fewer than two values.

    P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 1968.
    """
    array = finite(values)
    if len(array) < 2:
        return 0.0
    first, second = np.triu_indices(len(array), 1)
    return float(np.median((array[second] - array[first]) / (second - first)))


def mann_kendall(values: Sequence[float]) -> float:
    """The standard normal score of a monotonic trend, positive where the series rises; 0 for fewer than four values.

    H. B. Mann, "Nonparametric tests against trend", Econometrica 1945, with the usual correction for ties.
    """
    array = finite(values)
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


def trend(values: Sequence[float], *, less_is_better: bool, significance: float = 1.96) -> str:
    """`improving`, `degrading` or `stable`: the direction of a trend that Mann and Kendall's test finds significant."""
    score = mann_kendall(values)
    if abs(score) < significance:
        return "stable"
    return "improving" if (score < 0) == less_is_better else "degrading"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something that does not fit the history of a series."""

    kind: str
    """What is odd, such as `step_time_spike` or `loss_drift`."""
    figure: float
    """The value that stands out, in the unit of its series."""
    threshold: float
    """The bound that it crossed, in the same unit."""
    detail: str = ""


def spike(kind: str, values: Sequence[float], *, deviations: float = 6.0, minimum: int = 8) -> Anomaly | None:
    """Whether the last value lies above median + `deviations` robust standard deviations of those before it.

    The deviation is MAD / 0.6745 (Iglewicz & Hoaglin, "How to detect and handle outliers", 1993), and at least 5 %
    of the median, so that a series that hardly varies does not cry wolf.
    """
    array = finite(values)
    if len(array) <= minimum:
        return None
    past, last = array[:-1], float(array[-1])
    median = float(np.median(past))
    deviation = max(float(np.median(np.abs(past - median))) / _NORMAL_QUANTILE, 0.05 * abs(median), 1e-12)
    threshold = median + deviations * deviation
    if last <= threshold:
        return None
    return Anomaly(kind, last, threshold, f"{last:.4g} after a median of {median:.4g}")


def drift(
    kind: str, values: Sequence[float], *, weight: float = 0.2, limit: float = 4.0, minimum: int = 20
) -> Anomaly | None:
    """Whether the exponentially weighted mean has left the level of the first half of the series, upwards.

    S. W. Roberts, "Control chart tests based on geometric moving averages", Technometrics 1959: the bound is `limit`
    standard deviations of the weighted mean, σ·sqrt(w / (2 - w)), with median and MAD of the first half as level and σ.
    Values count up to 3 σ from the level, so that one spike is no drift.
    """
    array = finite(values)
    if len(array) < minimum:
        return None
    base, rest = array[: len(array) // 2], array[len(array) // 2 :]
    level = float(np.median(base))
    deviation = max(float(np.median(np.abs(base - level))) / _NORMAL_QUANTILE, 0.05 * abs(level), 1e-12)
    mean = level
    for value in np.clip(rest, level - 3 * deviation, level + 3 * deviation):
        mean += weight * (float(value) - mean)
    threshold = level + limit * deviation * math.sqrt(weight / (2 - weight))
    if mean <= threshold:
        return None
    return Anomaly(kind, mean, threshold, f"moving average {mean:.4g} from a level of {level:.4g}")
