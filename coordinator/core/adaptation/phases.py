"""The phases of a run."""

import math
from collections import deque
from enum import StrEnum

import numpy as np

from hypergpu.common.config import OrchestratorConfig


class Phase(StrEnum):
    """Where a run is."""

    INITIALIZATION = "initialization"
    WARM_UP = "warm_up"
    """Measures only."""
    ADAPTIVE = "adaptive_training"
    CONVERGENCE = "convergence"
    """Minimal adaptation: links that fail are still left out, sizes stay."""
    COMPLETED = "completed"


class PhaseReason(StrEnum):
    """Why a phase began."""

    TRAINING_STARTED = "training_started"
    LINKS_MEASURED = "links_measured"
    LOSS_STALLED = "loss_stalled"
    LOSS_MOVES_AGAIN = "loss_moves_again"
    SHUT_DOWN = "shut_down"


class LossTrend:
    """Whether the loss still improves: the slope of its logarithm over a window."""

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config
        self._logs: deque[float] = deque(maxlen=config.convergence_window)
        self._first, self._second = np.triu_indices(config.convergence_window, 1)
        self.improvement: float | None = None
        """Relative, per round, robust to single rounds (Theil–Sen); None before the window is full."""

    def observe(self, loss: float) -> None:
        """The loss after a round; ignored unless positive and finite."""
        if not (math.isfinite(loss) and loss > 0):
            return
        self._logs.append(float(np.log(loss)))
        if len(self._logs) == self._logs.maxlen:
            values, first, second = np.array(self._logs), self._first, self._second
            self.improvement = -float(np.median((values[second] - values[first]) / (second - first)))

    @property
    def stalled(self) -> bool:
        """It does not improve any more."""
        return self.improvement is not None and self.improvement < self._config.convergence_improvement

    @property
    def moving(self) -> bool:
        """It clearly improves (twice the limit: no flapping between the two)."""
        return self.improvement is not None and self.improvement > 2.0 * self._config.convergence_improvement
