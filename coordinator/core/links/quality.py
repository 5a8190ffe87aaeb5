"""Scores and quality classes of links, as functions over arrays."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hypergpu.common.config import MonitorConfig
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints


class ConnectionQuality(StrEnum):
    """Quality class of a link."""

    EXCELLENT = "excellent"
    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"
    CRITICAL = "critical"
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """Nothing was measured: no round trip, no failure, no long silence."""


class Trend(StrEnum):
    """Trend of a link's latency."""

    IMPROVING = "improving"
    STABLE = "stable"
    DEGRADING = "degrading"


CLASSES = tuple(ConnectionQuality)
UNKNOWN = CLASSES.index(ConnectionQuality.UNKNOWN)
OFFLINE = CLASSES.index(ConnectionQuality.OFFLINE)
CRITICAL = CLASSES.index(ConnectionQuality.CRITICAL)
POOR = CLASSES.index(ConnectionQuality.POOR)
FAIR = CLASSES.index(ConnectionQuality.FAIR)
GOOD = CLASSES.index(ConnectionQuality.GOOD)
LOWER_BOUNDS = np.array([90.0, 75.0, 60.0, 40.0, 0.0])
"""Lowest score of each class, EXCELLENT to CRITICAL. Each shipped profile, perfect … unstable, has its own."""
LOSS_MEMORY = 0.98
"""Weight of the past in the smoothed packet loss: averages over about the last 50 communications."""
SETTLED = 8
"""Number of communications after which hysteresis protects a class from noise."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Parts of the score, one entry per link."""

    latency: Floats
    """0–40; falls with the logarithm of the 75 % quantile of the round trip."""
    loss: Floats
    """0–30; falls linearly with the smoothed share of lost communications."""
    reliability: Floats
    """0–30; long-run share of successes, reduced by a running streak of failures."""
    freshness: Floats
    """0–1; recency of the measurements, scales the total."""

    @property
    def total(self) -> Floats:
        """Total score, 0–100."""
        return (self.latency + self.loss + self.reliability) * self.freshness


def _share(values: Floats) -> Floats:
    """Clip to [0, 1]; five times faster than `np.clip` for a few hundred links."""
    bounded: Floats = np.minimum(np.maximum(values, 0.0), 1.0)
    return bounded


def latency_points(latency_ms: Floats, config: MonitorConfig) -> Floats:
    """Return 0–40 points, falling with the logarithm of the latency between the configured best and worst."""
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
    """Return the score of each link.

    A link that was never `tested` gets half of the points, which decay with silence: a prior for decisions, which is
    shown to nobody. A link with failures only gets no points for its latency.
    """
    latency = latency_points(latency_ms, config)
    steady = _share(2.0 * success_share - 1.0) * (
        1.0 - _share((streak - 1.0) / config.offline_after_failures)  # a single failure is not a streak
    )
    # 1 for the first third of the time until the link is offline, then linearly down to 0.
    freshness = _share(1.5 * (1.0 - silence_seconds / config.offline_after_seconds))
    return Scores(
        np.where(np.isnan(latency_ms), np.where(success_share > 0, 20.0, 0.0), latency),
        np.where(tested, 30.0 * (1.0 - _share(loss / config.worst_loss)), 15.0),
        np.where(tested, 30.0 * steady, 15.0),
        freshness,
    )


def score_noise(loss: Floats, config: MonitorConfig) -> Floats:
    """Return the standard deviation of a score in points that random losses at this rate cause."""
    rate = _share(loss)
    variance = rate * (1.0 - rate)
    of_loss = 30.0 / config.worst_loss * np.sqrt(variance * (1.0 - LOSS_MEMORY) / (1.0 + LOSS_MEMORY))
    of_reliability = 60.0 * np.sqrt(variance / config.history)
    noise: Floats = np.minimum(of_loss, 15.0) + of_reliability
    return noise


def classify(total: Floats, before: Ints, offline: Bools, margin: Floats) -> Ints:
    """Return class numbers with hysteresis: a class changes only if the score is `margin` points past the boundary.

    Args:
        total: Scores.
        before: Previous class numbers; -1 for none.
        offline: Links that are offline whatever their score.
        margin: Width of the hysteresis in points.
    """
    boundaries = LOWER_BOUNDS[:-1]
    plain = (total[:, None] < boundaries).sum(axis=1)
    up = (total[:, None] < boundaries + margin[:, None]).sum(axis=1)
    down = (total[:, None] < boundaries - margin[:, None]).sum(axis=1)
    known = (before >= 0) & (before < OFFLINE)
    settled = np.where(known, np.clip(before, down, up), plain)
    return np.where(offline, OFFLINE, settled)


def trend_of(z: float) -> Trend:
    """Return the trend that a Mann–Kendall statistic shows at the 5 % significance level."""
    if abs(z) < 1.96:
        return Trend.STABLE
    return Trend.DEGRADING if z > 0 else Trend.IMPROVING
