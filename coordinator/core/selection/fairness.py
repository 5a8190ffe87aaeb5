"""Fairness: nodes that take part in a round although the strategy leaves them out."""

import numpy as np

from hypergpu.common.config import SelectorConfig
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints
from hypergpu.coordinator.core.selection.data_shares import DataShares
from hypergpu.coordinator.core.selection.strategies import CODE, SelectionReason, StrategyResult


class FairnessPolicy:
    """Policy that adds nodes to a strategy's choice, within a time budget for slow nodes."""

    def __init__(self, config: SelectorConfig, *, data_is_local: bool = False) -> None:
        self._config = config
        self._saved_seconds = 0.0
        self.data = DataShares(config.data_share if data_is_local else 0.0, config.fairness_rounds)
        """Samples that each node alone holds, and those of them that were seen lately."""

    def added(
        self,
        choice: StrategyResult,
        *,
        rows: Ints,
        unknown: Bools,
        on_probation: Bools,
        idle: Ints,
        healthy: Bools,
        seconds: Floats,
    ) -> StrategyResult:
        """Return `choice` with unexplored nodes, nodes on probation, and nodes whose turn has come.

        The turn of a node with a healthy link comes after `fairness_rounds` idle rounds, or as soon as its data is
        neglected; one on probation takes part in every round as it is. Nodes with a poor link whose turn has come, and
        those that are so slow that a turn in each `fairness_rounds` would take more than `slow_time_share` of the time,
        join later and all together, so that they share one slow round, once the saved time covers it.

        Args:
            choice: Result of the strategy.
            rows: Rows of the nodes in `data`.
            unknown: Nodes of which no round was measured.
            on_probation: Nodes on probation after a quarantine.
            idle: Rounds since each node last took part.
            healthy: Nodes whose link is fair or better.
            seconds: Samples of each node's expected round in seconds: shape (nodes, samples).
        """
        chosen, reasons = choice.chosen.copy(), choice.reasons.copy()
        inside = _longest(seconds, chosen)
        pays = seconds.mean(axis=1) <= (1.0 + self._config.fairness_rounds * self._config.slow_time_share) * inside
        left_out = ~chosen & ~on_probation
        overdue, neglected = (idle > self._config.fairness_rounds) & left_out, self.data.neglected(rows) & left_out
        for which, reason in (
            (unknown, SelectionReason.UNEXPLORED),
            (on_probation, SelectionReason.ON_PROBATION),
            (neglected & healthy, SelectionReason.DATA_TURN),
            (overdue & healthy & (pays | ~chosen.any()), SelectionReason.FAIRNESS_TURN),
        ):
            chosen |= which
            reasons[which] = CODE[reason]
        slow = (overdue | neglected) & ~chosen
        if self._affordable(slow, chosen, seconds):
            chosen |= slow
            reasons[slow] = np.where(neglected, CODE[SelectionReason.DATA_TURN], CODE[SelectionReason.FAIRNESS_TURN])[
                slow
            ]
        data_turn = reasons == CODE[SelectionReason.DATA_TURN]
        return StrategyResult(chosen, reasons, {**choice.figures, **self.data.figures(rows, data_turn)})

    def _affordable(self, slow: Bools, chosen: Bools, seconds: Floats) -> bool:
        inside = _longest(seconds, chosen)
        self._saved_seconds += self._config.slow_time_share * inside
        if not slow.any():
            return False
        extra = _longest(seconds, chosen | slow) - inside
        if extra > self._saved_seconds:
            return False
        self._saved_seconds -= max(extra, 0.0)
        return True


def _longest(seconds: Floats, nodes: Bools) -> float:
    """Return the expected time of the slowest of some nodes; 0 of none."""
    return float(seconds[nodes].max(axis=0).mean()) if nodes.any() else 0.0
