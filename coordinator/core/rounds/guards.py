"""Guards against a run that cannot get better: models that do not evaluate, and an error that every node shares."""

import math

from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.events import AbandonRound, KeepModel, RevertModel

MOST_REVERTS = 3
"""Evaluations in a row that are not finite before the run has diverged: one may be a bad update, three are not."""
LARGEST_LOSS = 1e20
"""Loss of a model that counts as one: beyond, squares of float32 overflow."""
LARGEST_RISE = 1e6
"""Times the loss of the kept model, or 1, that a loss may rise to: no training comes back from there."""
MOST_SHARED_FAULTS = 3
"""Rounds in a row that every node gave up for the same error before the run ends with it: it will not mend itself."""


class ModelGuard:
    """Keeps a model that evaluates as the one to return to, and returns to it from one that does not."""

    def __init__(self, kept_round: int, effects: EffectBuffer) -> None:
        self._kept_round = kept_round
        self._bound = LARGEST_LOSS
        self._effects = effects
        self._reverts = 0

    def judge(self, number: int, loss: float) -> bool:
        """Take in the loss on held-out data after a round; return whether the model is kept."""
        if math.isfinite(loss) and loss <= self._bound:
            self._reverts, self._kept_round = 0, number
            self._bound = LARGEST_RISE * max(loss, 1.0)
            self._effects.emit(KeepModel(number))
            return True
        self._reverts += 1
        self._effects.emit(RevertModel(number))
        to = f"the parameters after round {self._kept_round}" if self._kept_round else "the initial parameters"
        text = f"the loss is {loss:.4g} after round {number}: back to {to}"
        self._effects.record("model_reverted", text, kept_round=self._kept_round)
        return False

    @property
    def divergence(self) -> str:
        """Why the run has diverged; empty while it has not."""
        if self._reverts < MOST_REVERTS:
            return ""
        told = f"the loss was not finite, or had exploded, in {self._reverts} evaluations in a row"
        return f"{told}; try a lower training.learning_rate"


class SharedFaults:
    """Counts rounds in a row that every node gave up for one and the same error."""

    def __init__(self) -> None:
        self._kind, self._count = "", 0

    def closed(self) -> None:
        """Note that a round was closed: somebody could do the work."""
        self._kind, self._count = "", 0

    def abandoned(self, round_: AbandonRound) -> str:
        """Note a round that came to nothing; return why the run cannot go on, or nothing if it can."""
        same = bool(round_.fault) and round_.fault == self._kind
        self._kind, self._count = round_.fault, self._count + 1 if same else int(bool(round_.fault))
        if self._count < MOST_SHARED_FAULTS:
            return ""
        told = f": {round_.fault_detail}" if round_.fault_detail else ""
        return f"every node gave round {round_.round} up, {self._count} times in a row: {round_.fault}{told}"
