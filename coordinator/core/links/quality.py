"""Scores and classes of links, as functions over arrays of links."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hypergpu.common.config import MonitorConfig
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints


class ConnectionQuality(StrEnum):
    """The class of a link."""

    EXCELLENT = "excellent"
    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"
    CRITICAL = "critical"
    OFFLINE = "offline"


class Trend(StrEnum):
    """Where a link's latency is heading."""

    IMPROVING = "improving"
    STABLE = "stable"
    DEGRADING = "degrading"


CLASSES = tuple(ConnectionQuality)
OFFLINE = CLASSES.index(ConnectionQuality.OFFLINE)
CRITICAL = CLASSES.index(ConnectionQuality.CRITICAL)
POOR = CLASSES.index(ConnectionQuality.POOR)
FAIR = CLASSES.index(ConnectionQuality.FAIR)
GOOD = CLASSES.index(ConnectionQuality.GOOD)
LOWER_BOUNDS = np.array([90.0, 75.0, 60.0, 40.0, 0.0])
"""Least score of each class but OFFLINE: the shipped profiles perfect … unstable fall one into each."""
LOSS_MEMORY = 0.98
"""Weight of the past in the smoothed loss: about the last 50 communications count."""
SETTLED = 8
"""Communications from which on a class is held against noise."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Points of links, one entry each."""

    latency: Floats
    """0–40: falls with the logarithm of the 75 % quantile of the round trip."""
    loss: Floats
    """0–30: falls linearly with the smoothed share of lost communications."""
    reliability: Floats
    """0–30: long-run share of successes, cut by a running streak of failures."""
    freshness: Floats
    """0–1: how recent the data is; scales the total."""

    @property
    def total(self) -> Floats:
        """0–100."""
        return (self.latency + self.loss + self.reliability) * self.freshness


def _share(values: Floats) -> Floats:
    """Within [0, 1]: what `np.clip` does, in a fifth of its time for a few hundred links."""
    bounded: Floats = np.minimum(np.maximum(values, 0.0), 1.0)
    return bounded


def latency_points(latency_ms: Floats, config: MonitorConfig) -> Floats:
    """0–40, falling with the logarithm between the best and the worst latency."""
    span = np.log(config.worst_latency_ms / config.best_latency_ms)
    badness = np.log(np.maximum(latency_ms, 1e-9) / config.best_latency_ms) / span
    points: Floats = 40.0 * (1.0 - _share(badness))
    return points


def score(
    latency_ms: Floats,
    *,
    loss: Floats,
    success_share: Floats,
    tested: Bools,
    streak: Ints,
    silence_seconds: Floats,
    config: MonitorConfig,
) -> Scores:
    """Score links by their figures.

    A link that was never `tested` gets half of the points, decaying with silence; a latency that nothing but failures
    is known of earns none.
    """
    latency = latency_points(latency_ms, config)
    steady = _share(2.0 * success_share - 1.0) * (
        1.0 - _share((streak - 1.0) / config.offline_after_failures)  # one failure is no streak
    )
    # Full worth for a third of the time that leads to Offline, then down to nothing.
    freshness = _share(1.5 * (1.0 - silence_seconds / config.offline_after_seconds))
    return Scores(
        np.where(np.isnan(latency_ms), np.where(success_share > 0, 20.0, 0.0), latency),
        np.where(tested, 30.0 * (1.0 - _share(loss / config.worst_loss)), 15.0),
        np.where(tested, 30.0 * steady, 15.0),
        freshness,
    )


def score_noise(loss: Floats, config: MonitorConfig) -> Floats:
    """Standard deviation of a score in points, by the chance in which communications are lost at this rate."""
    rate = _share(loss)
    variance = rate * (1.0 - rate)
    of_loss = 30.0 / config.worst_loss * np.sqrt(variance * (1.0 - LOSS_MEMORY) / (1.0 + LOSS_MEMORY))
    of_reliability = 60.0 * np.sqrt(variance / config.history)
    noise: Floats = np.minimum(of_loss, 15.0) + of_reliability
    return noise


def classify(total: Floats, before: Ints, offline: Bools, margin: Floats) -> Ints:
    """Class numbers. A link leaves its class only when its score is `margin` points beyond the boundary.

    `before` holds the classes until now, -1 for none. A pure function of the score and the class, so that asking twice
    changes nothing.
    """
    boundaries = LOWER_BOUNDS[:-1]
    plain = (total[:, None] < boundaries).sum(axis=1)
    up = (total[:, None] < boundaries + margin[:, None]).sum(axis=1)
    down = (total[:, None] < boundaries - margin[:, None]).sum(axis=1)
    known = (before >= 0) & (before != OFFLINE)
    settled = np.where(known, np.clip(before, down, up), plain)
    return np.where(offline, OFFLINE, settled)


def trend_of(z: float) -> Trend:
    """The trend that a Mann–Kendall statistic shows at the 5 % level."""
    if abs(z) < 1.96:
        return Trend.STABLE
    return Trend.DEGRADING if z > 0 else Trend.IMPROVING
