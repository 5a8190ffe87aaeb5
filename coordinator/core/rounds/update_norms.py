"""Bound on the norm of an update: a finite update may still be poison.

One update of norm 1e30 ruins the mean of any number of honest ones. Norms of honest updates differ by data and by the
steps that were ordered, and shrink slowly while the model learns. So the norm per step of learning is compared with the
median of those that were accepted lately.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

HISTORY = 64
"""Accepted updates that the median is taken over: enough to outvote a minority, few enough to follow the training."""
LEAST_KNOWN = 4
"""Accepted updates before anything is refused."""
FACTOR = 20.0
"""Norm that is accepted, in medians. Skewed shards differ by 3 to 5; a bound of 20 lets one node of n move the mean by
20 / n medians at most."""
MOST_REFUSED = 3
"""Refusals in a row, of whomever, after which it is the norms that have changed: the history begins anew."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """Norm of an update that was refused, and what it was compared with."""

    norm: float
    bound: float
    median: float


class NormBound:
    """Judges the norms of updates, in the order in which they arrive."""

    def __init__(self) -> None:
        self._accepted: deque[float] = deque(maxlen=HISTORY)
        self._refused = 0

    def judge(self, norm: float | None, scale: float) -> Outlier | None:
        """Return why an update is refused, or None; an accepted norm joins the history.

        Args:
            norm: Euclidean norm of the update; None where it was not measured.
            scale: what a norm is expected to be proportional to, such as steps times the learning rate.
        """
        if norm is None:
            return None
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
        """Return the median of the accepted norms; infinite while too few are known, or none of them moves."""
        if len(self._accepted) < LEAST_KNOWN:
            return math.inf
        return median(self._accepted) or math.inf
