"""How good a model is, and which of two is better."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """Result of an evaluation on held-out data after a round."""

    round: int
    loss: float
    accuracy: float

    def beats(self, other: "Score | None") -> bool:
        """Whether this model is the better one: by accuracy, then by loss. A loss that is not finite beats nothing."""
        if not math.isfinite(self.loss):
            return False
        return other is None or self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        accuracy = self.accuracy if math.isfinite(self.accuracy) else -math.inf
        return accuracy, -self.loss if math.isfinite(self.loss) else -math.inf
