"""Error feedback: what a codec loses of one update is added to the next one (Seide et al., "1-bit SGD", 2014)."""

from typing import Final

import numpy as np

from hypergpu.common.tensors import Flat

DECAY: Final = 0.95
"""Share of the residual that is left after each round: old errors count less, also those of a node that was away. The
value is that of SparseLoCo's Covenant run (2026)."""
_BATCH_VALUES: Final = 1 << 16
"""Values that are added at once: they fit the CPU's cache."""


class ErrorFeedback:
    """Residual of a node: the part of its accepted updates that their codec lost.

    The error of an update is pending until its fate is known. `commit` makes it the residual when the update is in the
    model; `roll_back` leaves the residual as it was when it is not, since none of that update was used.

    The residual belongs to the node, whichever shard it trains on. It is kept over a reconnection, lost with the
    process, and dropped at the start of another run, whose model it has no relation to.

    Args:
        size: number of values.
        decay: share that is left after each round.
    """

    def __init__(self, size: int, decay: float = DECAY) -> None:
        self._size, self._decay = size, decay
        self._residual: Flat | None = None
        self._pending: Flat | None = None
        self._round = 0
        """Round of the residual."""
        self._pending_round = 0
        """Round of the pending error; 0 = none is pending."""

    @property
    def size(self) -> int:
        """Number of values."""
        return self._size

    @property
    def pending_round(self) -> int:
        """Round of the update whose fate is not known yet; 0 if there is none."""
        return self._pending_round

    def add_to(self, update: Flat, round_number: int) -> None:
        """Add the residual to the first `size` values of an update for a round."""
        if self._residual is not None:
            aged = np.float32(self._decay ** max(1, round_number - self._round))
            scratch: Flat = np.empty(min(_BATCH_VALUES, self._size), np.float32)
            for start in range(0, self._size, _BATCH_VALUES):
                part = self._residual[start : start + _BATCH_VALUES]
                update[start : start + len(part)] += np.multiply(part, aged, out=scratch[: len(part)])

    def stage(self, round_number: int) -> Flat:
        """Return the buffer for the error of an update for this round, which is pending from now on."""
        if self._pending is None:
            self._pending = np.empty(self._size, np.float32)
        self._pending_round = round_number
        return self._pending

    def settle(self, accepted_round: int) -> None:
        """Commit the pending error if its update was accepted for this round; else roll it back."""
        if self._pending_round == accepted_round:
            self.commit()
        else:
            self.roll_back()

    def commit(self) -> None:
        """Make the pending error the residual: its update was accepted."""
        if self._pending_round:
            self._residual, self._pending = self._pending, self._residual
            self._round, self._pending_round = self._pending_round, 0

    def roll_back(self) -> None:
        """Drop the pending error: its update was not accepted."""
        self._pending_round = 0
