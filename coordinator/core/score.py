"""Evaluation results and their ranking."""

import math
from dataclasses import dataclass

from hypergpu.common.metric import ACCURACY, MetricSpec, finite


@dataclass(frozen=True, slots=True)
class Score:
    """Result of an evaluation on held-out data after a round."""

    round: int
    loss: float
    metric: float | None
    """None if the metric is undefined on the held-out data."""
    spec: MetricSpec = ACCURACY

    def beats(self, other: "Score | None") -> bool:
        """Return whether this model is better: by metric, then by loss. A loss that is not finite never wins."""
        if not math.isfinite(self.loss):
            return False
        return other is None or self.rank > other.rank

    @property
    def rank(self) -> tuple[float, float]:
        """Rank among other models, higher for a better one: the metric, if lower is better its negative; then −loss."""
        value = finite(self.metric)
        worth = -math.inf if value is None else self.spec.gain(value, over=0.0)
        return worth, -self.loss if math.isfinite(self.loss) else -math.inf
