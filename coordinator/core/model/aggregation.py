"""Streaming mean of a round's updates, weighted by samples. Memory use does not depend on the number of nodes.

All operations work in place on blocks that fit the CPU cache: a temporary of the model's size would cost more time than
the sum.
"""

import math
from collections.abc import Iterable

import numpy as np

from hypergpu.common.tensors import Flat

BLOCK = 1 << 16
"""Number of floats per block: 256 KiB."""
Parts = Iterable[tuple[int, Flat]]
"""Parts of a flat buffer of at most `BLOCK` floats: the index of the first one, and the floats."""


def staleness_weight(staleness: int) -> float:
    """Return the factor s(τ) = 1 / √(1+τ) of an update that is τ rounds late.

    Source: Nguyen et al., "Federated learning with buffered asynchronous aggregation", AISTATS 2022.
    """
    return 1.0 / math.sqrt(1.0 + staleness)


class StreamingMean:
    """Σ sᵢ·wᵢ·xᵢ / Σ wᵢ over flat buffers of `size` floats; sᵢ is 1 for an update that is not late.

    The weights s are not divided out: where all updates are stale, the step is shorter.
    """

    def __init__(self, size: int) -> None:
        self._sum: Flat = np.zeros(size, np.float32)
        self._scratch: Flat = np.empty(min(BLOCK, size), np.float32)
        self.weight = 0.0
        """Σ wᵢ so far."""
        self.count = 0
        """Number of updates so far."""
        self._squares = 0.0

    def add(self, update: Flat, weight: float) -> None:
        """Add one update. The caller has checked that it is finite.

        Raises:
            ValueError: The size differs from that of the sum, or the weight is not positive.
        """
        if update.shape != self._sum.shape or not weight > 0:
            raise ValueError(f"an update of shape {update.shape} with weight {weight} for a sum of {self._sum.shape}")
        self.add_parts(pieces(update), weight)

    def add_parts(self, parts: Parts, weight: float, scale: float = 1.0) -> None:
        """Add one update, times `scale`, in parts that cover it; the caller has checked that they are finite."""
        factor, squares = np.float32(scale * weight), 0.0
        # An overflow makes the step fail its finiteness check, and the step is skipped.
        with np.errstate(over="ignore", invalid="ignore"):
            for start, piece in parts:
                total = self._sum[start : start + len(piece)]
                total += np.multiply(piece, factor, out=self._scratch[: len(piece)])
                squares += float(np.dot(piece, piece))
        self._squares += squares
        self.weight += weight
        self.count += 1

    def shift(self, start: int, by: Flat, weight: float) -> None:
        """Add to the end of the update that was added last, from index `start` on; its norm is kept."""
        self._sum[start:] += np.float32(weight) * by

    def take(self) -> Flat:
        """Return the mean. It shares memory with the sum: call `reset` before the next `add`.

        Raises:
            ValueError: No update was added.
        """
        if not self.count:
            raise ValueError("the mean of no updates")
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum *= np.float32(1.0 / self.weight)
        return self._sum

    def norms(self, mean: Flat) -> tuple[float, float]:
        """Return (mean of |update|² over the updates, |mean|²), given the result of `take`."""
        with np.errstate(over="ignore", invalid="ignore"):
            square = sum(float(np.dot(b, b)) for b in (mean[s : s + BLOCK] for s in range(0, len(mean), BLOCK)))
        return self._squares / self.count, square

    def reset(self) -> None:
        """Remove all updates."""
        self._sum.fill(0.0)
        self.weight, self.count, self._squares = 0.0, 0, 0.0


def pieces(flat: Flat) -> Parts:
    """Yield a flat buffer in parts of at most `BLOCK` floats."""
    return ((start, flat[start : start + BLOCK]) for start in range(0, len(flat), BLOCK))


def norm(parts: Parts) -> float:
    """Return the Euclidean norm of a buffer; it is NaN or infinite only if one of the numbers is."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for _, block in parts:
            square = float(np.dot(block, block))
            if not math.isfinite(square):  # the squares may overflow float32
                wide = block.astype(np.float64)
                square = float(np.dot(wide, wide))
            total += square
    return math.sqrt(total) if total >= 0 else math.nan


def is_finite(flat: Flat) -> bool:
    """Return whether all numbers are finite. Elements are checked only in blocks whose sum is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(flat), BLOCK):
            block = flat[start : start + BLOCK]
            if not np.isfinite(np.add.reduce(block)) and not np.isfinite(block).all():
                return False
    return True
