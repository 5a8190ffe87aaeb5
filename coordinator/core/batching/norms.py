"""Statistics of the norms of updates: how noisy they are, and how far nodes drift apart."""

from hypergpu.coordinator.core.batching.drift import DriftEstimator
from hypergpu.coordinator.core.batching.goodput import NoiseScale


class NormStatistics:
    """Gradient noise scale and drift, from the same norms."""

    def __init__(self) -> None:
        self.noise = NoiseScale()
        self.drift = DriftEstimator()

    def observe(self, norms: tuple[float, float], nodes: int, samples_per_node: float, steps: int) -> None:
        """Record a round: (mean of |update|² over the nodes, |mean update|²), and the work of each node."""
        mean_square_norm, square_norm_of_mean = float(norms[0]), float(norms[1])
        self.noise.observe(mean_square_norm, square_norm_of_mean, nodes, samples_per_node)
        self.drift.observe(mean_square_norm, square_norm_of_mean, nodes, steps)
