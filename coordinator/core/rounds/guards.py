"""Guards against a run that cannot improve: models that do not evaluate, and an error that every node reports."""

import math
from dataclasses import dataclass

from hypergpu.coordinator.core.rounds.events import AbandonRound
from hypergpu.coordinator.core.score import Score

MAX_REVERTS = 3
"""Bad evaluations in a row after which the run has diverged. One may come from a bad update, three do not."""
MAX_LOSS = 1e20
"""Largest loss that is kept. Above it, squares of float32 overflow."""
MAX_RISE = 1e6
"""Largest factor by which the loss may exceed that of the kept model (or 1). No training recovers from more."""
MAX_SHARED_FAULTS = 3
"""Rounds in a row that fail with the same error on every node, after which the run ends."""


@dataclass(slots=True)
class ModelGuard:
    """Keeps the last model that evaluated well, as the one to return to."""

    kept_round: int
    """Round of the kept model; 0 = the initial parameters."""
    bound: float = MAX_LOSS
    """Largest loss that the next model may have."""
    reverts: int = 0
    """Bad evaluations in a row."""
    kept_figures: tuple[float | None, float | None] = (None, None)
    """Loss and metric of the kept model, None if they were not measured."""

    def judge(self, loss: float) -> bool:
        """Return whether a model may be used, given its loss on held-out data."""
        if math.isfinite(loss) and loss <= self.bound:
            self.reverts = 0
            return True
        self.reverts += 1
        return False

    def keep(self, number: int, loss: float, metric: float | None) -> None:
        """Note that the model after round `number` is the one to return to."""
        self.restore(number, loss, metric)

    def restore(self, number: int, loss: float | None, metric: float | None) -> None:
        """Set the round and figures of the kept model; None where they were not measured."""
        self.kept_round, self.kept_figures = number, (loss, metric)
        self.bound = MAX_LOSS if loss is None else MAX_RISE * max(loss, 1.0)

    @property
    def kept_text(self) -> str:
        """Name of the kept model, for people."""
        return f"the parameters after round {self.kept_round}" if self.kept_round else "the initial parameters"

    @property
    def divergence(self) -> str:
        """Text that says why the run has diverged; empty while it has not."""
        if self.reverts < MAX_REVERTS:
            return ""
        return f"loss not finite or exploded in {self.reverts} evaluations in a row; try a lower training.learning_rate"


@dataclass(slots=True)
class Improvement:
    """Counts evaluations in a row that found no better model."""

    best: Score | None = None
    """Evaluation of the best model; None before the first."""
    evaluations: int = 0
    """Evaluations since that one."""

    def observe(self, score: Score) -> None:
        """Count an evaluation."""
        if score.beats(self.best):
            self.best, self.evaluations = score, 0
        else:
            self.evaluations += 1

    def ended(self, patience: int) -> str:
        """Return a text that says why the run is to end; empty while it is to go on, or if patience is 0."""
        if not 0 < patience <= self.evaluations:
            return ""
        since = f"that of round {self.best.round}" if self.best else "the initial one"
        return f"no model was better than {since} in {self.evaluations} evaluations"


@dataclass(slots=True)
class SharedFaults:
    """Counts rounds in a row that fail with one and the same error on every node."""

    kind: str = ""
    count: int = 0

    def on_closed(self) -> None:
        """Reset the count: a node could do the work."""
        self.kind, self.count = "", 0

    def on_abandoned(self, abandoned: AbandonRound) -> str:
        """Count an abandoned round; return why the run has to end, or an empty string."""
        same = bool(abandoned.fault) and abandoned.fault == self.kind
        self.kind, self.count = abandoned.fault, self.count + 1 if same else int(bool(abandoned.fault))
        if self.count < MAX_SHARED_FAULTS:
            return ""
        detail = f": {abandoned.fault_detail}" if abandoned.fault_detail else ""
        return (
            f"every node failed with the same error in round {abandoned.round}, {self.count} times in a row: "
            f"{abandoned.fault}{detail}"
        )
