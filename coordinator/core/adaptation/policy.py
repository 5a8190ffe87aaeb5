"""Adaptation policies and their parameters."""

from dataclasses import dataclass, replace

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


_REACTIVE = PolicyParameters(
    step=4.0, plan_gain=0.02, selection_gain=0.10, window=5, interval=1, horizon=0.0, rate_step=4.0, momentum=0.8
)
PARAMETERS = {
    AdaptationPolicy.NONE: PolicyParameters(
        step=1.0, plan_gain=0.0, selection_gain=0.0, window=16, interval=1, horizon=0.0, rate_step=1.0, momentum=0.0
    ),
    AdaptationPolicy.CONSERVATIVE: PolicyParameters(
        step=1.5, plan_gain=0.05, selection_gain=0.30, window=12, interval=2, horizon=0.0, rate_step=2.0, momentum=0.5
    ),
    AdaptationPolicy.AGGRESSIVE: PolicyParameters(
        step=8.0, plan_gain=0.0, selection_gain=0.03, window=3, interval=1, horizon=0.0, rate_step=8.0, momentum=0.8
    ),
    AdaptationPolicy.REACTIVE: _REACTIVE,
    AdaptationPolicy.PROACTIVE: replace(_REACTIVE, horizon=3.0),
    AdaptationPolicy.REHEARSED: _REACTIVE,
}
