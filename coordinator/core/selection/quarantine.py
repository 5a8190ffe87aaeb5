"""Quarantine: node states from active over quarantined (after repeated failures) to probation and back."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hypergpu.common.config import SelectorConfig
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column


class NodeState(StrEnum):
    """State of a node in the selection."""

    ACTIVE = "active"
    PROBATION = "probation"
    QUARANTINED = "quarantined"


class QuarantineReason(StrEnum):
    """Reason for a change of state."""

    REPEATED_FAILURES = "repeated_failures"
    REPEATEDLY_LATE = "repeatedly_late"
    """Its updates came after the end of their rounds, which counts half as much as a failure."""
    FAILED_ON_PROBATION = "failed_on_probation"
    QUARANTINE_EXPIRED = "quarantine_expired"
    PROBATION_PASSED = "probation_passed"
    RECOVERED = "recovered"
    """Its update came in time in a round that did not wait for it."""
    RELEASED_TO_FILL_ROUND = "released_to_fill_round"
    """All available nodes were quarantined, so the better half was released."""


STATES = tuple(NodeState)
_ACTIVE, _PROBATION, _QUARANTINED = range(3)


@dataclass(frozen=True, slots=True)
class NodeStateChange:
    """Change of a node's state."""

    row: int
    state: NodeState
    reason: QuarantineReason
    figures: dict[str, float | int | str]


class QuarantineTracker:
    """State of every node. Changes accumulate until `take_changes`. Quarantines are counted in rounds."""

    def __init__(self, config: SelectorConfig) -> None:
        self._config = config
        self._state: Ints = np.zeros(0, np.int64)
        self._until: Ints = np.zeros(0, np.int64)
        """First round after the quarantine."""
        self._failures: Ints = np.zeros(0, np.int64)
        """Failures since the last success, without late updates."""
        self._lates: Ints = np.zeros(0, np.int64)
        """Late updates since the last success."""
        self._strikes: Ints = np.zeros(0, np.int64)
        self._passed: Ints = np.zeros(0, np.int64)
        self._changes: deque[NodeStateChange] = deque(maxlen=10_000)

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self._state, self._until = grow_column(self._state, rows, _ACTIVE), grow_column(self._until, rows, 0)
        self._failures, self._lates = grow_column(self._failures, rows, 0), grow_column(self._lates, rows, 0)
        self._strikes, self._passed = grow_column(self._strikes, rows, 0), grow_column(self._passed, rows, 0)

    def state(self, row: int) -> NodeState:
        """Return the state of one node."""
        return STATES[int(self._state[row])]

    def remaining_rounds(self, rows: Ints, round_number: int) -> Ints:
        """Return the rounds from this one on that each node is still quarantined; 0 for one that is not."""
        return np.where(self._state[rows] == _QUARANTINED, np.maximum(self._until[rows] - round_number, 0), 0)

    def quarantined(self, rows: Ints) -> Bools:
        """Return a mask of the quarantined nodes."""
        held: Bools = self._state[rows] == _QUARANTINED
        return held

    def on_probation(self, rows: Ints) -> Bools:
        """Return a mask of the nodes on probation."""
        trial: Bools = self._state[rows] == _PROBATION
        return trial

    def outcomes(self, rows: Ints, success: Bools, late: Bools, round_number: int) -> None:
        """Record whether each node contributed to a round, and update its state; the rows must be distinct.

        `late` marks the nodes that were still at work when the round closed.
        """
        self._failures[rows] = np.where(success, 0, self._failures[rows] + (~success & ~late))
        self._lates[rows] = np.where(success, 0, self._lates[rows] + (~success & late))
        trial = self._state[rows] == _PROBATION
        self._passed[rows[trial & success]] += 1
        for row in rows[trial & success & (self._passed[rows] >= self._config.probation_successes)].tolist():
            self._strikes[row] = 0
            self._become(row, _ACTIVE, QuarantineReason.PROBATION_PASSED, {"successes": int(self._passed[row])})
        weight = 2 * self._failures[rows] + self._lates[rows]
        for row in rows[trial & (weight >= 2)].tolist():
            self._quarantine(row, QuarantineReason.FAILED_ON_PROBATION, round_number)
        often = ~success & (weight >= 2 * self._config.quarantine_after_failures)
        for row in rows[often & ~trial & (self._state[rows] == _ACTIVE)].tolist():
            only_late = self._failures[row] == 0
            reason = QuarantineReason.REPEATEDLY_LATE if only_late else QuarantineReason.REPEATED_FAILURES
            self._quarantine(row, reason, round_number)

    def release_due(self, rows: Ints, round_number: int) -> None:
        """Put nodes whose quarantine is over in this round on probation."""
        for row in rows[(self._state[rows] == _QUARANTINED) & (self._until[rows] <= round_number)].tolist():
            figures: dict[str, float | int | str] = {"strikes": int(self._strikes[row])}
            self._release(row, QuarantineReason.QUARANTINE_EXPIRED, figures)

    def only_late(self, rows: Ints) -> Bools:
        """Return a mask of the quarantined nodes whose updates were late, and that have not failed otherwise."""
        late: Bools = self.quarantined(rows) & (self._failures[rows] == 0)
        return late

    def release_recovered(self, rows: Ints) -> None:
        """Put the quarantined among these nodes on probation: they have shown that they are in time."""
        for row in rows[self._state[rows] == _QUARANTINED].tolist():
            self._release(row, QuarantineReason.RECOVERED, {"strikes": int(self._strikes[row])})

    def release_least_bad(self, rows: Ints, scores: Floats, round_number: int) -> Ints:
        """Put the better half (at least one) of these quarantined nodes on probation.

        Nodes are ranked by strikes, then by remaining quarantine, then by score.

        Returns:
            Positions of the released nodes in `rows`.
        """
        order = np.lexsort((-scores, self._until[rows], self._strikes[rows]))
        released = order[: max(1, len(rows) // 2)]
        remaining = self.remaining_rounds(rows, round_number)
        for at in released:
            row = int(rows[at])
            figures: dict[str, float | int | str] = {
                "quarantined_nodes": len(rows),
                "strikes": int(self._strikes[row]),
                "remaining_rounds": int(remaining[at]),
                "node_score": float(scores[at]),
            }
            self._release(row, QuarantineReason.RELEASED_TO_FILL_ROUND, figures)
        return released

    def take_changes(self) -> list[NodeStateChange]:
        """Return the changes since the last call."""
        changes = list(self._changes)
        self._changes.clear()
        return changes

    def _quarantine(self, row: int, reason: QuarantineReason, round_number: int) -> None:
        rounds = self._config.quarantine_rounds * 2 ** min(int(self._strikes[row]), 3)
        self._strikes[row] += 1
        self._until[row] = round_number + 1 + rounds
        figures: dict[str, float | int | str] = {
            "failures_in_a_row": int(self._failures[row]),
            "late_in_a_row": int(self._lates[row]),
            "quarantine_rounds": rounds,
        }
        self._become(row, _QUARANTINED, reason, figures)

    def _release(self, row: int, reason: QuarantineReason, figures: dict[str, float | int | str]) -> None:
        self._passed[row] = self._failures[row] = self._lates[row] = 0
        self._become(row, _PROBATION, reason, figures)

    def _become(self, row: int, state: int, reason: QuarantineReason, figures: dict[str, float | int | str]) -> None:
        self._state[row] = state
        self._changes.append(NodeStateChange(row, STATES[state], reason, figures))
