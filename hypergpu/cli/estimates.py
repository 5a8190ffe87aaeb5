"""Text of estimates that cannot be negative, such as times and their ratios."""

from hypergpu.common.text import UNKNOWN, figure
from hypergpu.simulation.statistics import Estimate


def interval(estimate: Estimate) -> str:
    """Return the mean of an estimate, with its interval if it has one: 1.25 [1.09, 1.43]."""
    if estimate.mean is None:
        return UNKNOWN
    if estimate.ci_low is None:
        return figure(estimate.mean, 3)
    return f"{figure(estimate.mean, 3)} [{figure(max(0.0, estimate.ci_low), 3)}, {figure(estimate.ci_high, 3)}]"
