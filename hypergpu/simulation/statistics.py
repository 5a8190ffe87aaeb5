"""Means with bootstrap confidence intervals, of a few paired runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypergpu.common.keyed_random import KeyedRandom

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its confidence interval; None where there is nothing to take it of."""

    mean: float | None
    ci_low: float | None
    ci_high: float | None

    def record(self) -> dict[str, float | None]:
        """Return a JSON object."""
        return {"mean": self.mean, "ci_low": self.ci_low, "ci_high": self.ci_high}


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean of `values` and its 95 % percentile bootstrap interval (Efron & Tibshirani, 1993, chapter 13).

    Pairs are compared by giving their differences or ratios as the values. The resamples are keyed by seed, so that the
    same values have the same interval. Of one value, the interval is that value.
    """
    if not values:
        return Estimate(None, None, None)
    array = np.asarray(values, np.float64)
    picks = KeyedRandom(seed, "bootstrap").generator().integers(0, len(array), (RESAMPLES, len(array)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(array[picks].mean(axis=1), [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high))
