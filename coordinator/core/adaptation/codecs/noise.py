"""Noise of the codecs of updates: expected before it was measured, and as the nodes report it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column

UPDATE_CODECS: Final = ("none", "bf16", "int8", "int4", "topk")
"""Codecs of updates, from the most to the fewest bytes."""
PRIOR_NOISE: Final[Mapping[str, float]] = MappingProxyType(
    {"none": 0.0, "bf16": 3e-6, "int8": 5e-4, "int4": 0.1, "topk": 0.8}
)
"""Noise of each before it was measured: rounded medians over updates of digits, chars and mnist5k."""
HAS_FEEDBACK: Final[Bools] = np.array([False, False, False, True, True])
"""Codecs of which the node adds what was lost to its next update."""
_FRESH = 0.5
"""Weight of a node's latest report."""


class NoiseTable:
    """Noise of each codec on each node, one row per link of the monitor."""

    def __init__(self) -> None:
        self._noise: Floats = np.zeros((0, len(UPDATE_CODECS)))

    def observe(self, rows: Ints, codecs: Sequence[str], noises: Sequence[float]) -> None:
        """Record the noise that nodes report of their updates."""
        self._noise = grow_column(self._noise, int(rows.max(initial=-1)) + 1, np.nan)
        places = np.array([UPDATE_CODECS.index(codec) for codec in codecs], np.int64)
        before = self._noise[rows, places]
        fresh = np.array(noises, np.float64)
        self._noise[rows, places] = np.where(np.isnan(before), fresh, before + _FRESH * (fresh - before))

    def measured(self, rows: Ints) -> Bools:
        """Return where the noise of a codec was measured on the node itself, shape (rows, codecs)."""
        known: Bools = ~np.isnan(self._own(rows))
        return known

    def expected(self, rows: Ints) -> Floats:
        """Return the noise of each codec on each node, shape (rows, codecs).

        What was not measured on a node is the median of the others, or the prior if no node has used the codec.
        """
        own = self._own(rows)
        usual = np.array([PRIOR_NOISE[codec] for codec in UPDATE_CODECS])
        for at in range(len(UPDATE_CODECS)):
            column = self._noise[:, at]
            known = column[~np.isnan(column)]
            if len(known):
                usual[at] = np.median(known)
        return np.where(np.isnan(own), usual, own)

    def _own(self, rows: Ints) -> Floats:
        self._noise = grow_column(self._noise, int(rows.max(initial=-1)) + 1, np.nan)
        return self._noise[rows]
