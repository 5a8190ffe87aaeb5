"""Who comes into a round though the strategy leaves it out: so that all are known, nobody starves, and that pays."""

from hypergpu.common.config import SelectorConfig
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints
from hypergpu.coordinator.core.selection.strategies import CODE, SelectionReason, StrategyResult


class FairnessPolicy:
    """Adds to a strategy's choice. It keeps account of the time that may be spent on slow nodes."""

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
        """`choice` with those whom nobody knows yet, those on probation, and those whose turn it is.

        A healthy node's turn comes when it was idle for `fairness_rounds`; the others' at some time after that, all of
        them at once, when the time saved up for them is enough: the slow share one slow round.

        Args:
            choice: what the strategy wants.
            unknown: who was never in a round.
            on_probation: who is on trial after a quarantine.
            idle: rounds since each was in one.
            healthy: whose link is fair or better.
            seconds: likely durations of each node's round: shape (nodes, measurements).
        """
        chosen, reasons = choice.chosen.copy(), choice.reasons.copy()
        overdue = (idle > self._config.fairness_rounds) & ~chosen
        for which, reason in (
            (unknown & ~chosen, SelectionReason.UNEXPLORED),
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
