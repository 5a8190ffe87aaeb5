"""The mean of a round's updates, weighted by samples, taken in as they arrive: memory for one sum, however many nodes.

Everything runs in blocks that stay in the cache, and in place: a model-sized temporary costs more than the sum itself.
"""

import math

import numpy as np

from hypergpu.common.tensors import Flat

BLOCK = 1 << 16
"""Floats that are worked on at a time: 256 KiB."""


class StreamingMean:
    """Σ wᵢ·xᵢ / Σ wᵢ over flat buffers of `size` floats."""

    def __init__(self, size: int) -> None:
        self._sum: Flat = np.zeros(size, np.float32)
        self._scratch: Flat = np.empty(min(BLOCK, size), np.float32)
        self.weight = 0.0
        """Σ wᵢ so far."""
        self.count = 0
        """Updates so far."""
        self._squares = 0.0

    def add(self, update: Flat, weight: float) -> None:
        """Take in one update, which has been checked (`is_finite`).

        Raises:
            ValueError: another size than the sum's, or a weight that is not positive.
        """
        if update.shape != self._sum.shape or not weight > 0:
            raise ValueError(f"an update of shape {update.shape} with weight {weight} for a sum of {self._sum.shape}")
        factor, squares = np.float32(weight), 0.0
        # An overflow shows in the step, which is then left out.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(update), BLOCK):
                total = self._sum[start : start + BLOCK]
                part = self._scratch[: len(total)]
                piece = update[start : start + BLOCK]
                np.multiply(piece, factor, out=part)
                total += part
                squares += float(np.dot(piece, piece))
        self._squares += squares
        self.weight += weight
        self.count += 1

    def take(self) -> Flat:
        """The mean; valid until the next `add`, which begins a new one after `reset`.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("the mean of no updates")
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum *= np.float32(1.0 / self.weight)
        return self._sum

    def norms(self, mean: Flat) -> tuple[float, float]:
        """(mean of |update|² over the updates, |mean|²), of the `mean` that `take` gave."""
        with np.errstate(over="ignore", invalid="ignore"):
            square = sum(float(np.dot(b, b)) for b in (mean[s : s + BLOCK] for s in range(0, len(mean), BLOCK)))
        return self._squares / self.count, square

    def reset(self) -> None:
        """Forget everything."""
        self._sum.fill(0.0)
        self.weight, self.count, self._squares = 0.0, 0, 0.0


def norm(flat: Flat) -> float:
    """Return the Euclidean norm of a flat buffer; NaN or infinite exactly if one of its numbers is."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(flat), BLOCK):
            block = flat[start : start + BLOCK]
            square = float(np.dot(block, block))
            if not math.isfinite(square):  # the square of a float32 may be none
                wide = block.astype(np.float64)
                square = float(np.dot(wide, wide))
            total += square
    return math.sqrt(total) if total >= 0 else math.nan


def is_finite(flat: Flat) -> bool:
    """Whether all numbers are finite: the sum of a block tells, and only a bad sum is looked at closely."""
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(flat), BLOCK):
            block = flat[start : start + BLOCK]
            if not np.isfinite(np.add.reduce(block)) and not np.isfinite(block).all():
                return False
    return True
