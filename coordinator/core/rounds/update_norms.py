"""Bound on the norm of an update, since a finite update may still be poison.

One update of norm 1e30 ruins the mean of any number of honest ones. Norms of honest updates depend on the data and on
the number of steps, and shrink slowly while the model learns. The norm, divided by its expected scale, is therefore
compared with the median of recently accepted updates.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

HISTORY = 64
"""Accepted updates behind the median: enough to outvote a minority, few enough to follow the training."""
LEAST_KNOWN = 4
"""Accepted updates before any update is refused."""
FACTOR = 20.0
"""Largest accepted norm, in medians. Skewed shards differ by factors of 3 to 5; with a bound of 20, one node of n moves
the mean by at most 20 / n medians."""
MOST_REFUSED = 3
"""Refusals in a row, of any nodes, after which the norms themselves must have changed: the history starts again."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """Norm of a refused update, and the figures it was compared with."""

    norm: float
    bound: float
    median: float


class NormBound:
    """Judges the norms of updates in the order of their arrival."""

    def __init__(self) -> None:
        self._accepted: deque[float] = deque(maxlen=HISTORY)
        self._refused = 0

    def judge(self, norm: float, scale: float) -> Outlier | None:
        """Return why an update is refused, or None; add an accepted norm to the history.

        Args:
            norm: Euclidean norm of the update.
            scale: expected scale of the norm, such as steps × learning rate.
        """
        relative, middle = norm / scale, self._median()
        if relative > FACTOR * middle:
            if self._refused < MOST_REFUSED:
                self._refused += 1
                return Outlier(norm, FACTOR * middle * scale, middle * scale)
            self._accepted.clear()
        self._refused = 0
        self._accepted.append(relative)
        return None

    def _median(self) -> float:
        """Return the median of the accepted norms; infinite if too few are known, or if it is zero."""
        if len(self._accepted) < LEAST_KNOWN:
            return math.inf
        return median(self._accepted) or math.inf
