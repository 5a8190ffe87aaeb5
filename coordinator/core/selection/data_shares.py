"""Shares of the samples that nodes hold, and of those that were seen lately: fairness by data.

Where each node holds its own samples, a node that is left out takes its data with it. Its share of the samples seen
should not fall far below its share of the samples held.
"""

from typing import Final

import numpy as np

from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column

_MEMORY_TURNS: Final = 2.0
"""Rounds over which samples count as seen lately, in times of `fairness_rounds`."""


class DataShares:
    """Samples held and lately seen of each node, one row per node.

    A round sees at most all samples of a node, however often it repeats them. Of a node that does not report how many
    it holds, an update counts as all of them.

    Args:
        least: part of its share of the samples held below which a node's share of those seen is too small; 0 = any is
            enough.
        fairness_rounds: rounds after which a node that was left out has its turn.
    """

    def __init__(self, least: float, fairness_rounds: int) -> None:
        self._least = least
        self._memory = 1.0 - 1.0 / (_MEMORY_TURNS * fairness_rounds)
        self._held: Floats = np.zeros(0)
        self._passes: Floats = np.zeros(0)
        """Passes over its samples, of which each round adds one at most."""

    @property
    def matters(self) -> bool:
        """True if each node holds its own samples, and fairness goes by them."""
        return self._least > 0

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self._held = grow_column(self._held, rows, 0.0)
        self._passes = grow_column(self._passes, rows, 0.0)

    def hold(self, row: int, samples: int) -> None:
        """Note how many samples a node holds; 0 = unknown."""
        self._held[row] = samples

    def begin_round(self) -> None:
        """Let earlier rounds count less."""
        self._passes *= self._memory

    def see(self, rows: Ints, samples: Floats) -> None:
        """Record the samples in the updates of these nodes; the rows must be distinct."""
        held = self._held[rows]
        self._passes[rows] += np.where(held > 0, np.minimum(samples / np.maximum(held, 1.0), 1.0), samples > 0)

    def held_shares(self, rows: Ints) -> Floats:
        """Return the share of each of these nodes in the samples that they hold.

        A node that does not report its number counts as holding the mean of the others.
        """
        held = self._held[rows]
        known = held > 0
        held = np.where(known, held, held[known].mean() if known.any() else 1.0)
        shares: Floats = held / max(float(held.sum()), 1.0)
        return shares

    def seen_shares(self, rows: Ints) -> Floats:
        """Return the share of each of these nodes in the samples that were seen lately; 0 for all before the first."""
        seen = self._passes[rows] * self.held_shares(rows)
        shares: Floats = seen / (float(seen.sum()) or 1.0)
        return shares

    def figures(self, rows: Ints, which: Bools) -> dict[str, Floats]:
        """Return the two shares of those nodes among these for which they decide; NaN for the others."""
        if not which.any():
            return {}
        shares = {"seen_share": self.seen_shares(rows), "held_share": self.held_shares(rows)}
        return {name: np.where(which, share, np.nan) for name, share in shares.items()}

    def neglected(self, rows: Ints) -> Bools:
        """Return which of these nodes hold data that was seen too little lately; none before any was seen."""
        seen = self.seen_shares(rows)
        too_little: Bools = (seen < self._least * self.held_shares(rows)) & bool(seen.any())
        return too_little
