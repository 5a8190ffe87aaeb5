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
_MOST_POINTS = 200
"""Of a series of which all pairs are looked at; a longer one is first taken together."""


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
    """The median of the slopes between all pairs, per value; 0 for fewer than two values.

    P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 1968.
    """
    array, step = _condensed(finite(values))
    if len(array) < 2:
        return 0.0
    first, second = np.triu_indices(len(array), 1)
    return float(np.median((array[second] - array[first]) / (second - first))) / step


def mann_kendall(values: Sequence[float]) -> float:
    """The standard normal score of a monotonic trend, positive where the series rises; 0 for fewer than four values.

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
    """The medians of blocks of as many values as it takes to keep few, and the length of a block."""
    step = math.ceil(len(array) / _MOST_POINTS)
    if step <= 1:
        return array, 1
    whole = len(array) // step * step
    blocks: Floats = np.median(array[len(array) - whole :].reshape(-1, step), axis=1)
    return blocks, step


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


def spike(kind: str, values: Sequence[float], *, deviations: float = 6.0, minimum: int = 10) -> Anomaly | None:
    """Whether one of the latest values, a tenth of the series, lies far above those before: median + `deviations` · σ.

    σ is MAD / 0.6745 (Iglewicz & Hoaglin, "How to detect and handle outliers", 1993).
    """
    array = finite(values)
    recent = max(1, len(array) // 10)
    past = array[:-recent]
    if len(past) < minimum:
        return None
    worst = float(array[-recent:].max())
    level, deviation = _level(past)
    threshold = level + deviations * deviation
    if worst <= threshold:
        return None
    return Anomaly(kind, worst, threshold, f"{worst:.4g} after a median of {level:.4g}")


def drift(
    kind: str, values: Sequence[float], *, weight: float = 0.2, limit: float = 5.0, minimum: int = 20
) -> Anomaly | None:
    """Whether the exponentially weighted mean has left the level of the first half of the series, upwards.

    S. W. Roberts, "Control chart tests based on geometric moving averages", Technometrics 1959: the bound is `limit`
    standard deviations of the weighted mean, σ·sqrt(w / (2 - w)), above the mean of the first half. Values count up to
    3 σ from the median, here as there, so that one spike is no drift and a skewed series is not one either.
    """
    array = finite(values)
    if len(array) < minimum:
        return None
    median, deviation = _level(array[: len(array) // 2])
    clipped = np.clip(array, median - 3 * deviation, median + 3 * deviation)
    base, rest = clipped[: len(array) // 2], clipped[len(array) // 2 :]
    level = mean = float(base.mean())
    for value in rest:
        mean += weight * (float(value) - mean)
    threshold = level + limit * deviation * math.sqrt(weight / (2 - weight))
    if mean <= threshold:
        return None
    return Anomaly(kind, mean, threshold, f"moving average {mean:.4g} from a level of {level:.4g}")


def _level(values: Floats) -> tuple[float, float]:
    """Median and σ of a series as an upper bound sees them.

    σ is MAD / 0.6745, or that of the values above the median where it is larger, as in skewed series; and at least 5 %
    of the median, so that a series that hardly varies does not cry wolf.
    """
    median = float(np.median(values))
    away = np.abs(values - median)
    mad = max(float(np.median(away)), float(np.median(away[values >= median])))
    return median, max(mad / _NORMAL_QUANTILE, 0.05 * abs(median), 1e-12)
