"""Phases of a run, and the trend of the loss that separates them."""

import math
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from statistics import median

import numpy as np

from hypergpu.common.config import OrchestratorConfig


class Phase(StrEnum):
    """Phase of a run."""

    INITIALIZATION = "initialization"
    WARM_UP = "warm_up"
    """Measure links and nodes without adapting anything."""
    ADAPTIVE = "adaptive_training"
    CONVERGENCE = "convergence"
    """Adapt minimally: failing links are still left out, but batch sizes stay."""
    COMPLETED = "completed"


class PhaseReason(StrEnum):
    """Reason why a phase began."""

    TRAINING_STARTED = "training_started"
    LINKS_MEASURED = "links_measured"
    LOSS_STALLED = "loss_stalled"
    LOSS_MOVES_AGAIN = "loss_moves_again"
    RESUMED = "resumed"
    """A new process goes on with what an earlier one has learned."""
    SHUT_DOWN = "shut_down"


class LossTrend:
    """Trend of the loss: the slope of its logarithm over a window of rounds."""

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config
        self._logs: deque[float] = deque(maxlen=config.convergence_window)
        self._first, self._second = np.triu_indices(config.convergence_window, 1)
        self.improvement: float | None = None
        """Relative improvement per round, robust to outliers (Theil–Sen); None before the window is full."""

    def observe(self, loss: float) -> None:
        """Record the loss after a round; it is ignored unless positive and finite."""
        if not (math.isfinite(loss) and loss > 0):
            return
        self._add(float(np.log(loss)))

    def _add(self, log: float) -> None:
        self._logs.append(log)
        if len(self._logs) == self._logs.maxlen:
            values = np.array(self._logs)
            slopes = (values[self._second] - values[self._first]) / (self._second - self._first)
            self.improvement = -median(slopes.tolist())  # numpy's own would import numpy.ma first, in 20 ms

    def state(self) -> list[float]:
        """Return the state for a checkpoint: the logarithms of the latest losses."""
        return list(self._logs)

    def restore(self, logs: Iterable[float]) -> None:
        """Go on from the state of an earlier process."""
        for log in logs:
            self._add(log)

    @property
    def stalled(self) -> bool:
        """True if the loss has stopped changing; a loss that rises has not converged."""
        return self.improvement is not None and abs(self.improvement) < self._config.convergence_improvement

    @property
    def moving(self) -> bool:
        """True if the loss clearly improves: by twice the limit of `stalled`, so that the phase does not flap."""
        return self.improvement is not None and self.improvement > 2.0 * self._config.convergence_improvement
