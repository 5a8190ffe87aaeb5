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
    FAILED_ON_PROBATION = "failed_on_probation"
    QUARANTINE_EXPIRED = "quarantine_expired"
    PROBATION_PASSED = "probation_passed"
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
    """State of every node. Changes accumulate until `take_changes`."""

    def __init__(self, config: SelectorConfig) -> None:
        self._config = config
        self._state: Ints = np.zeros(0, np.int64)
        self._until: Floats = np.zeros(0)
        self._streak: Ints = np.zeros(0, np.int64)
        self._strikes: Ints = np.zeros(0, np.int64)
        self._passed: Ints = np.zeros(0, np.int64)
        self._changes: deque[NodeStateChange] = deque(maxlen=10_000)

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self._state, self._streak = grow_column(self._state, rows, _ACTIVE), grow_column(self._streak, rows, 0)
        self._strikes, self._passed = grow_column(self._strikes, rows, 0), grow_column(self._passed, rows, 0)
        self._until = grow_column(self._until, rows, 0.0)

    def state(self, row: int) -> NodeState:
        """Return the state of one node."""
        return STATES[int(self._state[row])]

    def remaining_seconds(self, rows: Ints, now: float) -> Floats:
        """Return the remaining quarantine of each node in seconds; 0 for a node that is not quarantined."""
        return np.where(self._state[rows] == _QUARANTINED, np.maximum(self._until[rows] - now, 0.0), 0.0)

    def quarantined(self, rows: Ints) -> Bools:
        """Return a mask of the quarantined nodes."""
        held: Bools = self._state[rows] == _QUARANTINED
        return held

    def on_probation(self, rows: Ints) -> Bools:
        """Return a mask of the nodes on probation."""
        trial: Bools = self._state[rows] == _PROBATION
        return trial

    def outcomes(self, rows: Ints, success: Bools, now: float) -> None:
        """Record whether each node contributed to a round, and update its state; the rows must be distinct."""
        self._streak[rows] = np.where(success, 0, self._streak[rows] + 1)
        trial = self._state[rows] == _PROBATION
        self._passed[rows[trial & success]] += 1
        for row in rows[trial & success & (self._passed[rows] >= self._config.probation_successes)].tolist():
            self._strikes[row] = 0
            self._become(row, _ACTIVE, QuarantineReason.PROBATION_PASSED, {"successes": int(self._passed[row])})
        for row in rows[trial & ~success].tolist():
            self._quarantine(row, QuarantineReason.FAILED_ON_PROBATION, now)
        often = ~success & (self._streak[rows] >= self._config.quarantine_after_failures)
        for row in rows[often & ~trial & (self._state[rows] == _ACTIVE)].tolist():
            self._quarantine(row, QuarantineReason.REPEATED_FAILURES, now)

    def release_due(self, rows: Ints, now: float) -> None:
        """Put nodes whose quarantine has expired on probation."""
        for row in rows[(self._state[rows] == _QUARANTINED) & (self._until[rows] <= now)].tolist():
            figures: dict[str, float | int | str] = {"strikes": int(self._strikes[row])}
            self._release(row, QuarantineReason.QUARANTINE_EXPIRED, figures)

    def release_least_bad(self, rows: Ints, scores: Floats, now: float) -> Ints:
        """Put the better half (at least one) of these quarantined nodes on probation.

        Nodes are ranked by strikes, then by remaining quarantine, then by score.

        Returns:
            Positions of the released nodes in `rows`.
        """
        order = np.lexsort((-scores, self._until[rows], self._strikes[rows]))
        released = order[: max(1, len(rows) // 2)]
        remaining = self.remaining_seconds(rows, now)
        for at in released:
            row = int(rows[at])
            figures: dict[str, float | int | str] = {
                "quarantined_nodes": len(rows),
                "strikes": int(self._strikes[row]),
                "remaining_seconds": float(remaining[at]),
                "node_score": float(scores[at]),
            }
            self._release(row, QuarantineReason.RELEASED_TO_FILL_ROUND, figures)
        return released

    def take_changes(self) -> list[NodeStateChange]:
        """Return the changes since the last call."""
        changes = list(self._changes)
        self._changes.clear()
        return changes

    def _quarantine(self, row: int, reason: QuarantineReason, now: float) -> None:
        seconds = self._config.quarantine_seconds * 2 ** min(int(self._strikes[row]), 3)
        self._strikes[row] += 1
        self._until[row] = now + seconds
        failures = int(self._streak[row])
        figures: dict[str, float | int | str] = {"failures_in_a_row": failures, "quarantine_seconds": seconds}
        self._become(row, _QUARANTINED, reason, figures)

    def _release(self, row: int, reason: QuarantineReason, figures: dict[str, float | int | str]) -> None:
        self._passed[row] = self._streak[row] = 0
        self._become(row, _PROBATION, reason, figures)

    def _become(self, row: int, state: int, reason: QuarantineReason, figures: dict[str, float | int | str]) -> None:
        self._state[row] = state
        self._changes.append(NodeStateChange(row, STATES[state], reason, figures))
