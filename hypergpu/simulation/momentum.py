"""Momentum of a modelled server."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class ModelledMomentum:
    """Velocity along the path of training, in full steps (see `coordinator/core/model/optimizer.py`)."""

    velocity: float = 0.0
    _waiting: list[float] = field(default_factory=list)

    def move(self, fresh: float, momentum: float, every: int) -> float:
        """Return how far a step leads whose updates lead `fresh`; momentum adds to each of `every` steps."""
        self._waiting.append(fresh)
        if len(self._waiting) < every:
            return fresh
        kept = momentum * self.velocity
        self.velocity = kept + sum(self._waiting) / len(self._waiting)
        self._waiting.clear()
        return kept + fresh
