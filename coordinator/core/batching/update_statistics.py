"""Statistics of updates: how noisy they are, how far nodes drift apart, and how soon local work is done."""

from hypergpu.coordinator.core.batching.drift import DriftEstimator, SaturationEstimator
from hypergpu.coordinator.core.batching.goodput import NoiseScale


class UpdateStatistics:
    """Gradient noise scale and drift, from the same norms, and the saturation of local work."""

    def __init__(self) -> None:
        self.noise = NoiseScale()
        self.drift = DriftEstimator()
        self.saturation = SaturationEstimator()

    def restart(self) -> None:
        """Forget drift and saturation: the updates to come are of another optimizer."""
        self.drift, self.saturation = DriftEstimator(), SaturationEstimator()

    def state(self) -> tuple[float | None, float | None]:
        """Return drift and saturation for a checkpoint, as logarithms; None if not measured."""
        return self.drift.steps.log, self.saturation.steps.log

    def restore(self, drift_log: float | None, saturation_log: float | None) -> None:
        """Restore what `state` returned."""
        self.drift.steps.log, self.saturation.steps.log = drift_log, saturation_log

    def observe(self, norms: tuple[float, float], nodes: int, samples_per_node: float, steps: int) -> None:
        """Record a round: (mean of |update|² over the nodes, |mean update|²), and the work of each node."""
        mean_square_norm, square_norm_of_mean = float(norms[0]), float(norms[1])
        self.noise.observe(mean_square_norm, square_norm_of_mean, nodes, samples_per_node)
        self.drift.observe(mean_square_norm, square_norm_of_mean, nodes, steps)
