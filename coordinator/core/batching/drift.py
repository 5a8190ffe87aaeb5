"""Measured worth of local steps: how far nodes drift apart while they work without each other."""

import math
from collections.abc import Sequence
from statistics import median

_MEMORY = 0.5
"""Weight of the past per round."""
_MOST_RATIO = 0.999


class _LogMean:
    """Mean of positive figures on a logarithmic scale; the past counts half as much with each round."""

    def __init__(self) -> None:
        self.log: float | None = None
        """Logarithm of the mean; None before the first figure."""

    def add(self, figure: float) -> None:
        """Add the figure of a round."""
        fresh = math.log(figure)
        self.log = fresh if self.log is None else _MEMORY * self.log + (1.0 - _MEMORY) * fresh

    def value(self, prior: float) -> float:
        """Return the mean, or `prior` before the first figure."""
        return prior if self.log is None else math.exp(self.log)


class DriftEstimator:
    """Estimates D, the local steps at which half of their worth is lost, from the norms of updates.

    Steps in the same direction survive the mean; what pulls nodes apart does not. The share that survives
    is r = |mean update| / rms |update|. With the worth of k steps as k / (1 + k / D), r = 1 / (1 + k / D), so
    D = k·r / (1 - r). It falls towards the end of training, when updates are mostly noise, and with data that differs
    between nodes; it grows with more work of nodes that agree.
    """

    def __init__(self) -> None:
        self.steps = _LogMean()

    def observe(self, mean_square_norm: float, square_norm_of_mean: float, nodes: int, steps: int) -> None:
        """Record a round of `steps` local steps: mean of |updateᵢ|² and |mean update|²."""
        sound = math.isfinite(mean_square_norm) and math.isfinite(square_norm_of_mean) and mean_square_norm > 0
        if nodes < 2 or steps < 1 or not sound:
            return
        ratio = min(max(math.sqrt(square_norm_of_mean / mean_square_norm), 1e-3), _MOST_RATIO)
        self.steps.add(steps * ratio / (1.0 - ratio))

    def value(self, prior: float) -> float:
        """Return D in steps, or `prior` before the first measurement."""
        return self.steps.value(prior)


class SaturationEstimator:
    """Estimates τ, the local steps after which a node has little left to learn from its own samples.

    The loss of a node's first batch falls from a to b by k steps. With a loss that falls as e^(-k/τ), τ = k / ln(a/b).
    Later steps fit the samples of one node, which a step of all nodes together does not gain from.
    """

    def __init__(self) -> None:
        self.steps = _LogMean()

    def observe(self, ratios: Sequence[float], steps: int) -> None:
        """Record b/a of the nodes of a round, and the local steps that it took."""
        sound = [ratio for ratio in ratios if 0 < ratio < _MOST_RATIO]
        if len(sound) * 2 <= len(ratios):  # losses that do not fall say nothing of when they stop falling
            return
        self.steps.add(steps / math.log(1.0 / median(sound)))

    def value(self) -> float:
        """Return τ in steps; infinite before the first measurement."""
        return self.steps.value(prior=math.inf)
