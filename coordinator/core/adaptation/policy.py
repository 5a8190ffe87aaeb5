"""Adaptation policies and their parameters."""

from dataclasses import dataclass

from hypergpu.common.strategies import AdaptationPolicy


@dataclass(frozen=True, slots=True)
class PolicyParameters:
    """Parameters of a policy."""

    step: float
    """Largest factor of a single change of a batch or of the local steps."""
    plan_gain: float
    """Smallest relative gain in goodput for which batches and steps change."""
    selection_gain: float
    """Smallest relative gain in progress per second for which nodes are left out."""
    window: int
    """Number of latest round communications used per link."""
    interval: int
    """Number of rounds between changes."""
    horizon: float
    """Forecast horizon of the links in rounds."""
    rate_step: float
    """Factor of the first trial of a higher learning rate."""
    momentum: float
    """Momentum of the server's step, where none is configured."""


PARAMETERS = {
    AdaptationPolicy.NONE: PolicyParameters(1.0, 0.0, 0.0, 16, 1, 0.0, 1.0, 0.0),
    AdaptationPolicy.CONSERVATIVE: PolicyParameters(1.5, 0.05, 0.30, 12, 2, 0.0, 2.0, 0.5),
    AdaptationPolicy.AGGRESSIVE: PolicyParameters(8.0, 0.0, 0.03, 3, 1, 0.0, 8.0, 0.8),
    AdaptationPolicy.REACTIVE: PolicyParameters(4.0, 0.02, 0.10, 5, 1, 0.0, 4.0, 0.8),
    AdaptationPolicy.PROACTIVE: PolicyParameters(4.0, 0.02, 0.10, 5, 1, 3.0, 4.0, 0.8),
}
