"""One link in full, for people and reports."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from hypergpu.coordinator.core.links.quality import ConnectionQuality, Trend


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """One link as it stands. Figures are NaN where nothing was measured yet."""

    node_id: str
    quality: ConnectionQuality
    score: float
    latency_score: float
    loss_score: float
    reliability_score: float
    freshness: float
    latency_ms: float
    """Median round trip."""
    latency_p95_ms: float
    jitter_ms: float
    """Half of the distance between the quartiles: the MAD, for a symmetric distribution."""
    loss_rate: float
    """Smoothed share of lost communications."""
    reliability: float
    """Share of successes over the whole history."""
    trend: Trend
    forecast_ms: float
    """Round trip expected at the next observation."""
    round_seconds: float
    """Median time that the node's communication took in a round."""
    communications: int
    silence_seconds: float

    @property
    def measured(self) -> bool:
        """Whether the class rests on a measurement: a round trip, or nothing but failures or silence."""
        failing = self.communications > 0 and self.reliability == 0
        return not math.isnan(self.latency_ms) or failing or self.quality is ConnectionQuality.OFFLINE

    def record(self) -> dict[str, Any]:
        """As a JSON object; None for a figure that was not measured."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
