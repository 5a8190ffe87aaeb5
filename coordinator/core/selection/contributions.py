"""Contributions of each node: efficiency, reliability, statistical utility and the last round it took part in."""

import numpy as np

from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column

_MEMORY = 0.9
"""Weight of the past per attempt: averages over about the last ten."""
COLUMNS = ("compute", "waiting", "attempts", "loss")


class Contributions:
    """Contribution figures in columns, one row per node."""

    def __init__(self) -> None:
        self.sums: Floats = np.zeros((0, len(COLUMNS)))
        self.last_round: Ints = np.zeros(0, np.int64)
        """Last round in which the node was selected."""
        self.counts: Ints = np.zeros((0, 3), np.int64)
        """Total attempts, successes and rounds selected."""
        self.terms: Floats = np.zeros((0, 2))
        """Price per hour, and rank of the priority class."""

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self.sums = grow_column(self.sums, rows, 0.0)
        self.last_round = grow_column(self.last_round, rows, -1)
        self.counts = grow_column(self.counts, rows, 0)
        self.terms = grow_column(self.terms, rows, 0.0)

    def add(self, rows: Ints, compute: Floats, waiting: Floats, success: Bools, loss: Floats) -> None:
        """Record one attempt of each node; the rows must be distinct, and NaN stands for an unknown loss."""
        sums = self.sums[rows]
        fresh = np.stack([compute, waiting, np.ones(len(rows))], axis=1)
        before = sums[:, 3]
        known = np.isfinite(loss) & (loss > 0)
        smoothed = np.where(before > 0, 0.5 * (before + loss), loss)
        self.sums[rows, :3] = _MEMORY * sums[:, :3] + fresh
        self.sums[rows, 3] = np.where(known, smoothed, before)
        self.counts[rows, 0] += 1
        self.counts[rows, 1] += success

    def add_times(self, row: int, compute: float, waiting: float) -> None:
        """Add times to the latest attempt of a node."""
        self.sums[row, 0] += compute
        self.sums[row, 1] += waiting

    def forget_times(self, rows: Ints) -> None:
        """Forget the times of these nodes' attempts, which were measured over other links than they have now."""
        self.sums[rows, :3] = 0.0

    def efficiency(self, rows: Ints) -> Floats:
        """Return compute / (compute + waiting) of each node; 1 without a measurement."""
        compute, waiting = self.sums[rows, 0], self.sums[rows, 1]
        total = compute + waiting
        return np.where(total > 0, compute / np.where(total > 0, total, 1.0), 1.0)

    def reliability(self, rows: Ints) -> Floats:
        """Return successes / attempts of each node; 1 without an attempt."""
        attempts, successes = self.counts[rows, 0], self.counts[rows, 1]
        return np.where(attempts > 0, successes / np.where(attempts > 0, attempts, 1.0), 1.0)

    def score(self, rows: Ints) -> Floats:
        """Return the contribution score, 0 to 1: the mean of efficiency and reliability."""
        return 0.5 * self.efficiency(rows) + 0.5 * self.reliability(rows)

    def compute_seconds(self, rows: Ints) -> Floats:
        """Return the mean computing time per attempt of each node."""
        mean: Floats = self.sums[rows, 0] / np.maximum(self.sums[rows, 2], 1.0)  # the weight is >= 1 after an attempt
        return mean

    def statistical_utility(self, rows: Ints) -> Floats:
        """Return the loss of each node's data relative to the median, clipped to [½, 2].

        Source: statistical utility in Lai et al., "Oort: efficient federated learning via guided participant
        selection", OSDI 2021.
        """
        loss = self.sums[rows, 3]
        known = loss > 0
        if not known.any():
            return np.ones(len(rows))
        return np.where(known, np.clip(loss / np.median(loss[known]), 0.5, 2.0), 1.0)
