"""Distributions of one-way latency, each given by its quantile function so that one keyed uniform draw decides."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

_STANDARD_NORMAL = NormalDist()
_TINY = 2.0**-54


class Latency(Protocol):
    """A distribution of one-way delays, in seconds."""

    def at(self, u: float) -> float:
        """Return the quantile at `u` in [0, 1): seconds, never negative."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform between `low` and `high` seconds."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """Return the latency at a quantile."""
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal with this mean and deviation, cut off below `floor`, the propagation delay."""

    mean: float
    std: float
    floor: float = 0.0

    def at(self, u: float) -> float:
        """Return the latency at a quantile."""
        return max(self.floor, self.mean + self.std * standard_normal(u))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """`floor` plus a lognormal with this median and this sigma of the logarithm: the usual shape of queueing delay."""

    median: float
    sigma: float
    floor: float = 0.0

    def at(self, u: float) -> float:
        """Return the latency at a quantile."""
        return self.floor + self.median * math.exp(self.sigma * standard_normal(u))


@dataclass(frozen=True, slots=True)
class Pareto:
    """Pareto with minimum `scale` and tail index `alpha`, cut off at `ceiling`."""

    scale: float
    alpha: float
    ceiling: float = math.inf

    def at(self, u: float) -> float:
        """Return the latency at a quantile."""
        return min(self.ceiling, self.scale * math.pow(1.0 - u, -1.0 / self.alpha))


@dataclass(frozen=True, slots=True)
class Empirical:
    """The distribution of measured delays (sorted seconds), linear between neighbours."""

    sorted_seconds: tuple[float, ...]

    def at(self, u: float) -> float:
        """Return the latency at a quantile."""
        values = self.sorted_seconds
        position = u * (len(values) - 1)
        below = int(position)
        if below + 1 >= len(values):
            return values[-1]
        return values[below] + (values[below + 1] - values[below]) * (position - below)

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Empirical":
        """Return the distribution of measurements in any order; at least one."""
        return cls(tuple(sorted(seconds)))

    def rank(self, seconds: float) -> float:
        """Return the share of measurements up to `seconds`."""
        return bisect_right(self.sorted_seconds, seconds) / len(self.sorted_seconds)


@dataclass(frozen=True, slots=True)
class Shifted:
    """Another distribution plus a constant: an access line plus the distance to another region."""

    latency: Latency
    added: float

    def at(self, u: float) -> float:
        """Return the latency at a quantile."""
        return self.latency.at(u) + self.added


def standard_normal(u: float) -> float:
    """Return the standard normal quantile at `u` in [0, 1)."""
    return _STANDARD_NORMAL.inv_cdf(min(max(u, _TINY), 1.0 - _TINY))


def standard_normal_cdf(z: float) -> float:
    """Return the probability that a standard normal is below `z`, kept inside [0, 1)."""
    return min(0.5 * math.erfc(-z / math.sqrt(2.0)), 1.0 - _TINY)
