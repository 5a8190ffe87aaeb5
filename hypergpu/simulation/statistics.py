"""Means of a few paired runs, with confidence intervals by Student's t."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

CONFIDENCE: Final = 0.95
SMALLEST: Final = 1e-9
"""Least value in a geometric mean: a scenario without latency and compute times may take no time at all."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its confidence interval. No mean without values; no interval of fewer than two."""

    mean: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None

    @property
    def inverse(self) -> "Estimate":
        """Return the estimate of the inverse ratio."""
        low, high = self.ci_high, self.ci_low
        return Estimate(*(None if bound is None else 1 / bound for bound in (self.mean, low, high)))

    def to_dict(self) -> dict[str, float | None]:
        """Return a JSON object."""
        return {"mean": self.mean, "ci_low": self.ci_low, "ci_high": self.ci_high}


def mean_of(values: Sequence[float]) -> Estimate:
    """Return the arithmetic mean with its 95 % interval: exact for normal values."""
    if len(values) < 2:
        return Estimate(float(values[0])) if values else Estimate()
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    half = t_quantile(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(mean, mean - half, mean + half)


def geometric_mean_of(values: Sequence[float]) -> Estimate:
    """Return the geometric mean of values that are not negative with its 95 % interval: exact for log-normal values.

    Times and their ratios are means of this kind: a run that takes twice as long and one that takes half as long cancel
    out, whichever of the two is the numerator.
    """
    if len(values) < 2:
        return mean_of(values)
    found = mean_of([math.log(max(value, SMALLEST)) for value in values])
    return Estimate(
        *(None if bound is None else math.exp(bound) for bound in (found.mean, found.ci_low, found.ci_high))
    )


def sign_test(ups: int, downs: int) -> float:
    """Return the probability of a split at least as uneven as this one if both sides were as likely.

    The exact two-sided test of McNemar, on pairs that differ.
    """
    count = ups + downs
    as_uneven = sum(math.comb(count, k) for k in range(min(ups, downs) + 1))
    return min(1.0, 2.0 * as_uneven / float(2**count))


@cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return the bound within which Student's t of so many degrees of freedom lies with this probability."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):  # to the last bit of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return high


def _within(bound: float, degrees: int) -> float:
    """Return the probability that |t| ≤ `bound` (Abramowitz & Stegun, 1964, 26.7.3 and 26.7.4)."""
    theta = math.atan(bound / math.sqrt(degrees))
    cosine = math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    return (theta + math.sin(theta) * total) * 2 / math.pi if odd else math.sin(theta) * total
