"""The policies: how boldly, how often and how far ahead adaptation acts."""

from dataclasses import dataclass
from enum import StrEnum


class AdaptationPolicy(StrEnum):
    """How adaptation acts."""

    NONE = "none"
    """Not at all: every node, the configured batch. The fixed baseline."""
    CONSERVATIVE = "conservative"
    """Small gradual changes, on long evidence."""
    AGGRESSIVE = "aggressive"
    """Large changes, to find the optimum."""
    REACTIVE = "reactive"
    """Responds at once to what was measured."""
    PROACTIVE = "proactive"
    """Forecasts each link and acts before it gets there."""


@dataclass(frozen=True, slots=True)
class PolicyParameters:
    """What makes a policy."""

    step: float
    """Largest factor by which a batch or the local steps change at once."""
    plan_gain: float
    """Least relative gain in goodput for which batches and steps change."""
    selection_gain: float
    """Least relative gain in progress per second for which nodes are left out."""
    window: int
    """Latest rounds of a link that count."""
    interval: int
    """Rounds from one change to the next."""
    horizon: float
    """Rounds ahead for which links are forecast."""


PARAMETERS = {
    AdaptationPolicy.NONE: PolicyParameters(1.0, 0.0, 0.0, 16, 1, 0.0),
    AdaptationPolicy.CONSERVATIVE: PolicyParameters(1.25, 0.05, 0.30, 12, 2, 0.0),
    AdaptationPolicy.AGGRESSIVE: PolicyParameters(4.0, 0.0, 0.03, 3, 1, 0.0),
    AdaptationPolicy.REACTIVE: PolicyParameters(2.0, 0.02, 0.10, 5, 1, 0.0),
    AdaptationPolicy.PROACTIVE: PolicyParameters(2.0, 0.02, 0.10, 5, 1, 3.0),
}
