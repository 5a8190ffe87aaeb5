"""Momentum of a modelled server, by fragment of the model."""

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


class ModelledFragments:
    """Fragments of a modelled run: their number, which of them the round synchronises, and the momentum of each.

    Each is an equal part of the path. All of them move equally far, in turn.
    """

    def __init__(self, count: int, *, overlap: bool) -> None:
        self.count = count
        self._overlap = overlap
        self._momentums = [ModelledMomentum() for _ in range(count)]
        self._present = 0

    def begun_anew(self) -> "ModelledFragments":
        """Return the fragments of the same run, without any velocity."""
        return ModelledFragments(self.count, overlap=self._overlap)

    @property
    def rounds_apart(self) -> int:
        """Rounds of local steps for which nodes train a fragment apart from each other.

        A fragment has its turn after as many as there are fragments. While it travels, nodes take those of one more.
        """
        return self.count + self._overlap

    def begin_round(self, number: int) -> None:
        """Synchronise the fragment of a round."""
        self._present = number % self.count

    @property
    def momentum(self) -> ModelledMomentum:
        """Momentum of the fragment that the round synchronises."""
        return self._momentums[self._present]
