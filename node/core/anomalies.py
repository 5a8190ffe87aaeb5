"""Anomalies of a series: values that do not fit its history."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypergpu.common.statistics import MAD_TO_SIGMA, Floats, finite


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A value that does not fit the history of its series."""

    kind: str
    """Kind of anomaly, such as `step_time_spike` or `loss_drift`."""
    figure: float
    """The value that stands out, in the unit of its series."""
    threshold: float
    """The bound that it crossed, in the same unit."""
    detail: str = ""


def spike(kind: str, values: Sequence[float], *, deviations: float = 6.0, minimum: int = 10) -> Anomaly | None:
    """Return an anomaly if one of the latest tenth of the values is above median + `deviations` · σ of the rest.

    σ is 1.4826 · MAD (Iglewicz & Hoaglin, "How to detect and handle outliers", 1993).
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
    """Return an anomaly if the exponentially weighted mean has risen above the level of the first half of the series.

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

    σ is 1.4826 · MAD, or that of the values above the median where it is larger, as in skewed series; and at least 5 %
    of the median, so that a series that hardly varies does not cry wolf.
    """
    median = float(np.median(values))
    away = np.abs(values - median)
    mad = max(float(np.median(away)), float(np.median(away[values >= median])))
    return median, max(MAD_TO_SIGMA * mad, 0.05 * abs(median), 1e-12)
