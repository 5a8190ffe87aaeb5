"""What each node has contributed: efficiency, reliability, what its data teaches, and when it was last in a round."""

import numpy as np

from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column

_MEMORY = 0.9
"""Weight of the past per attempt: about the last ten count."""
COLUMNS = ("compute", "waiting", "attempts", "successes", "loss")


class Contributions:
    """Columns of figures, one row per node."""

    def __init__(self) -> None:
        self.sums: Floats = np.zeros((0, len(COLUMNS)))
        self.last_round: Ints = np.zeros(0, np.int64)
        """In which the node was selected."""
        self.counts: Ints = np.zeros((0, 3), np.int64)
        """Attempts, successes, rounds selected: in all."""

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self.sums = grow_column(self.sums, rows, 0.0)
        self.last_round = grow_column(self.last_round, rows, -1)
        self.counts = grow_column(self.counts, rows, 0)

    def add(self, rows: Ints, compute: Floats, waiting: Floats, success: Bools, loss: Floats) -> None:
        """One attempt of each of these nodes, which differ; a loss that is NaN is not known."""
        sums = self.sums[rows]
        fresh = np.stack([compute, waiting, np.ones(len(rows)), success.astype(np.float64)], axis=1)
        before = sums[:, 4]
        known = np.isfinite(loss) & (loss > 0)
        smoothed = np.where(before > 0, 0.5 * (before + loss), loss)
        self.sums[rows, :4] = _MEMORY * sums[:, :4] + fresh
        self.sums[rows, 4] = np.where(known, smoothed, before)
        self.counts[rows, 0] += 1
        self.counts[rows, 1] += success

    def efficiency(self, rows: Ints) -> Floats:
        """compute / (compute + waiting); 1 where nothing was measured."""
        compute, waiting = self.sums[rows, 0], self.sums[rows, 1]
        total = compute + waiting
        return np.where(total > 0, compute / np.where(total > 0, total, 1.0), 1.0)

    def reliability(self, rows: Ints) -> Floats:
        """successes / attempts; 1 where there was none."""
        attempts, successes = self.sums[rows, 2], self.sums[rows, 3]
        return np.where(attempts > 0, successes / np.where(attempts > 0, attempts, 1.0), 1.0)

    def score(self, rows: Ints) -> Floats:
        """Half efficiency, half reliability: 0 to 1."""
        return 0.5 * self.efficiency(rows) + 0.5 * self.reliability(rows)

    def compute_seconds(self, rows: Ints) -> Floats:
        """Mean computing per attempt."""
        mean: Floats = self.sums[rows, 0] / np.maximum(self.sums[rows, 2], 1.0)  # after one attempt they are 1 or more
        return mean

    def statistical_utility(self, rows: Ints) -> Floats:
        """Statistical utility (after Oort): the loss of a node's data relative to the median, within [½, 2]."""
        loss = self.sums[rows, 4]
        known = loss > 0
        if not known.any():
            return np.ones(len(rows))
        return np.where(known, np.clip(loss / np.median(loss[known]), 0.5, 2.0), 1.0)
