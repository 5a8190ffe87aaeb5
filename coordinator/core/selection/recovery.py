"""Recovery: probes of nodes whose link was better before.

A probe is work that the round does not wait for. It costs the others no time, and an update that arrives before the
round closes counts like any other. A node that is left out because its link has become worse is probed in every second
round, and in the next one after a probe that arrived in time. It is awaited again after one such probe; a node that was
left out again soon after its last return needs twice as many in a row as then.
"""

import numpy as np

from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column

WORSE = 1.5
"""Ratio of a link's expected communication to its best for which it counts as worse; window means of a steady link
stay below it."""
USUAL = 2.0
"""The same for a single communication, which varies more than a mean."""
WORSE_POINTS = 5.0
"""Loss of points of a node's score for which it counts as worse: more than the hysteresis of a class."""
_GAP = 2
"""Rounds from a probe that was not in time to the next one."""
_RELAPSE_ROUNDS = 50
"""Rounds after a return within which being left out again is a relapse."""
_MOST_DOUBLINGS = 4
"""Limit of the probes in a row that a return takes, as a power of two."""
_NEVER = -(10**9)


class RecoveryProbes:
    """Nodes that are probed, and how their probes went. Columns with one row per node."""

    def __init__(self) -> None:
        self._best_seconds: Floats = np.zeros(0)
        """Shortest expected communication while the strategy chose the node; infinite = unknown."""
        self._best_score: Floats = np.zeros(0)
        """Highest score of the node while the strategy chose it."""
        self._on_trial: Bools = np.zeros(0, bool)
        self._probed: Ints = np.zeros(0, np.int64)
        """Round of the latest probe."""
        self._in_time: Ints = np.zeros(0, np.int64)
        """Round of the latest probe whose update arrived in time."""
        self._streak: Ints = np.zeros(0, np.int64)
        """Probes in a row that were in time."""
        self._relapses: Ints = np.zeros(0, np.int64)
        self._returned: Ints = np.zeros(0, np.int64)
        """Round after which the node was awaited again."""

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self._best_seconds, self._best_score = (
            grow_column(self._best_seconds, rows, np.inf),
            grow_column(self._best_score, rows, 0.0),
        )
        self._on_trial = grow_column(self._on_trial, rows, False)
        self._probed, self._in_time = (
            grow_column(self._probed, rows, _NEVER),
            grow_column(self._in_time, rows, _NEVER - 1),
        )
        self._streak, self._relapses = grow_column(self._streak, rows, 0), grow_column(self._relapses, rows, 0)
        self._returned = grow_column(self._returned, rows, _NEVER)

    def on_trial(self, rows: Ints) -> Bools:
        """Return a mask of the nodes that have not yet come back."""
        held: Bools = self._on_trial[rows]
        return held

    def figures(self, row: int, seconds: float) -> dict[str, float]:
        """Return the figures behind a probe of a node whose communication is expected to take `seconds`."""
        best = float(self._best_seconds[row])
        return {
            "communication_seconds": seconds,
            **({"best_communication_seconds": best} if best < np.inf else {}),
            "probes_in_time": int(self._streak[row]),
            "probes_needed": self._needed(np.array([row])).item(),
        }

    def chosen(self, rows: Ints, seconds: Floats, scores: Floats) -> None:
        """Note the expected communication and the scores of nodes that the strategy has chosen."""
        self._best_seconds[rows] = np.minimum(self._best_seconds[rows], seconds)
        self._best_score[rows] = np.maximum(self._best_score[rows], scores)

    def is_worse(self, rows: Ints, seconds: Floats, scores: Floats) -> Bools:
        """Return a mask of the nodes that are clearly worse than they were when the strategy chose them."""
        worse: Bools = seconds > WORSE * self._best_seconds[rows]
        return worse | (scores < self._best_score[rows] - WORSE_POINTS)

    def due(self, rows: Ints, *, chosen: Bools, may_recover: Bools, round_number: int) -> Bools:
        """Return a mask of the nodes that are probed in this round.

        Args:
            rows: Rows of the nodes.
            chosen: Nodes that the strategy chooses. One that has not come back yet is still probed.
            may_recover: Nodes that are left out because of their link, which was better before.
            round_number: Number of the round.
        """
        begin = may_recover & ~self._on_trial[rows]
        again = round_number - self._returned[rows] <= _RELAPSE_ROUNDS
        self._relapses[rows[begin]] = np.where(again, self._relapses[rows] + 1, 0)[begin]
        self._on_trial[rows[begin]] = True
        answered = self._in_time[rows] == self._probed[rows]
        self._streak[rows[begin | ~answered]] = 0
        rested = answered | (round_number - self._probed[rows] >= _GAP)
        due: Bools = self._on_trial[rows] & (chosen | (may_recover & rested))
        return due

    def begin(self, rows: Ints, round_number: int) -> None:
        """Note that these nodes are probed in this round."""
        self._probed[rows] = round_number

    def were_probed(self, rows: Ints, round_number: int) -> Bools:
        """Return a mask of the nodes that were probed in this round."""
        probed: Bools = self._on_trial[rows] & (self._probed[rows] == round_number)
        return probed

    def is_usual(self, row: int, seconds: float) -> bool:
        """Return whether the latest probe of a node, of which nothing was known yet, took no longer than before."""
        unknown = self._on_trial[row] and self._in_time[row] != self._probed[row]
        return bool(unknown and seconds <= USUAL * self._best_seconds[row])

    def succeeded(self, rows: Ints, round_number: int) -> Ints:
        """Note the probed nodes whose updates arrived in time; return the rows of those that have come back."""
        self._in_time[rows] = self._probed[rows]
        self._streak[rows] += 1
        back = rows[self._streak[rows] >= self._needed(rows)]
        self._on_trial[back] = False
        self._returned[back] = round_number
        return back

    def _needed(self, rows: Ints) -> Ints:
        """Return how many probes in a row have to be in time."""
        needed: Ints = 2 ** np.minimum(self._relapses[rows], _MOST_DOUBLINGS)
        return needed
