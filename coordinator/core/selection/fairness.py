"""Fairness: nodes that take part in a round although the strategy leaves them out."""

from hypergpu.common.config import SelectorConfig
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints
from hypergpu.coordinator.core.selection.strategies import CODE, SelectionReason, StrategyResult


class FairnessPolicy:
    """Policy that adds nodes to a strategy's choice, within a time budget for slow nodes."""

    def __init__(self, config: SelectorConfig) -> None:
        self._config = config
        self._saved_seconds = 0.0

    def added(
        self,
        choice: StrategyResult,
        *,
        unknown: Bools,
        on_probation: Bools,
        idle: Ints,
        healthy: Bools,
        seconds: Floats,
    ) -> StrategyResult:
        """Return `choice` with unexplored nodes, nodes on probation, and nodes whose turn has come.

        The turn of a node with a healthy link comes after `fairness_rounds` idle rounds; one on probation takes part in
        every round as it is. Overdue nodes with a poor link
        join later and all together, so that they share one slow round, once the saved time covers it.

        Args:
            choice: Result of the strategy.
            unknown: Nodes of which no round was measured.
            on_probation: Nodes on probation after a quarantine.
            idle: Rounds since each node last took part.
            healthy: Nodes whose link is fair or better.
            seconds: Samples of each node's expected round in seconds: shape (nodes, samples).
        """
        chosen, reasons = choice.chosen.copy(), choice.reasons.copy()
        overdue = (idle > self._config.fairness_rounds) & ~chosen & ~on_probation
        for which, reason in (
            (unknown, SelectionReason.UNEXPLORED),
            (on_probation, SelectionReason.ON_PROBATION),
            (overdue & healthy, SelectionReason.FAIRNESS_TURN),
        ):
            chosen |= which
            reasons[which] = CODE[reason]
        slow = overdue & ~chosen
        if self._affordable(slow, chosen, seconds):
            chosen |= slow
            reasons[slow] = CODE[SelectionReason.FAIRNESS_TURN]
        return StrategyResult(chosen, reasons, choice.figures)

    def _affordable(self, slow: Bools, chosen: Bools, seconds: Floats) -> bool:
        inside = float(seconds[chosen].max(axis=0).mean()) if chosen.any() else 0.0
        self._saved_seconds += self._config.slow_time_share * inside
        if not slow.any():
            return False
        extra = float(seconds[chosen | slow].max(axis=0).mean()) - inside
        if extra > self._saved_seconds:
            return False
        self._saved_seconds -= max(extra, 0.0)
        return True
