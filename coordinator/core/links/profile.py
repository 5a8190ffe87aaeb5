"""Complete description of one link, for status pages and reports."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from hypergpu.coordinator.core.links.quality import ConnectionQuality, Trend

MBIT: Final = 8e-6
"""Mbit/s in a byte per second."""
RATE_FIGURES: Final = tuple(
    f"{direction}_{figure}"
    for direction in ("down", "up")
    for figure in ("mbit", "spread_mbit", "least_mbit", "age_seconds")
)
"""Fields of a profile about the rates of a link."""
ROUND_TRIP_QUANTILES: Final = {f"rtt_p{percent:02}_ms": percent / 100 for percent in (5, 25, 50, 75, 95)}
"""Names and probabilities of the quantiles of round trips that are recorded."""


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """State of one link. Figures without a measurement are NaN: all but the rates where the quality is UNKNOWN."""

    node_id: str
    quality: ConnectionQuality
    score: float
    latency_score: float
    loss_score: float
    reliability_score: float
    freshness: float
    latency_ms: float
    """Median round trip in milliseconds, while nothing of the run was in its way."""
    latency_p95_ms: float
    loaded_latency_ms: float
    """Median round trip behind a transfer of the run. It shows a queue of our own and counts for nothing else."""
    jitter_ms: float
    """Half of the interquartile range, which equals the MAD for a symmetric distribution."""
    loss_rate: float
    """Smoothed share of lost communications."""
    reliability: float
    """Share of successful communications in the history, in which an outage counts as one failure."""
    trend: Trend
    forecast_ms: float
    """Round trip expected at the next observation."""
    round_seconds: float
    """Median round communication."""
    down_mbit: float
    """Rate from the coordinator to the node in Mbit/s, by the transfers of parameters."""
    down_spread_mbit: float
    """Half of the interquartile range of its measurements."""
    down_least_mbit: float
    """Rate that the link has shown at least; the only figure while all transfers were too short to measure it."""
    down_age_seconds: float
    """Time since the latest transfer that counts."""
    up_mbit: float
    """Rate from the node to the coordinator in Mbit/s, by the transfers of updates."""
    up_spread_mbit: float
    up_least_mbit: float
    up_age_seconds: float
    communications: int
    silence_seconds: float

    def rates(self) -> dict[str, float]:
        """Return the figures about the rates of both directions, by name of their field."""
        return {name: getattr(self, name) for name in RATE_FIGURES}

    @property
    def measured(self) -> bool:
        """True if the class is based on a measurement: a round trip, only failures, or a long silence."""
        return self.quality is not ConnectionQuality.UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as a JSON object; a figure without a measurement is None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
