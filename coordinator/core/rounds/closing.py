"""When a round ends, and whether it counts."""

from hypergpu.common.config.training import TrainingConfig
from hypergpu.coordinator.core.decisions import CLUSTER, DecisionKind
from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator, DeadlineReason
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer, Figures
from hypergpu.coordinator.core.rounds.events import AbandonRound, CloseReason, CloseRound
from hypergpu.coordinator.core.rounds.membership import Membership
from hypergpu.coordinator.core.rounds.opening import RETRY_SECONDS
from hypergpu.coordinator.core.rounds.work import Round

MAX_EXTENSIONS = 2
"""Times that a deadline which passed without a quorum is extended, each time to twice as long."""

Ending = CloseRound | AbandonRound
"""A round that counts, or one that comes to nothing and starts again later."""


class RoundCloser:
    """Ends a round when everyone has answered, or at its deadline with a quorum."""

    def __init__(
        self, *, config: TrainingConfig, members: Membership, deadlines: DeadlineEstimator, effects: EffectBuffer
    ) -> None:
        self._config = config
        self._members = members
        self._deadlines = deadlines
        self._effects = effects

    def close_if_complete(self, current: Round, now: float) -> Ending | None:
        """The end, if nobody's answer is outstanding any more."""
        if current.live > 0:
            return None
        if not current.contributions:
            return self._abandon(current, "nobody is left who could contribute")
        everyone = len(current.contributions) == len(current.units)
        return self._close(current, CloseReason.ALL_CONTRIBUTED if everyone else CloseReason.SURVIVORS_CONTRIBUTED, now)

    def at_deadline(self, current: Round, now: float) -> Ending | None:
        """The end, unless there is no quorum yet and more time can be given."""
        if current.has_quorum:
            return self._close(current, CloseReason.QUORUM_AT_DEADLINE, now)
        if current.extensions < MAX_EXTENSIONS:
            current.extensions += 1
            current.deadline_at = now + max(now - current.started_at, RETRY_SECONDS)
            figures: Figures = {
                "contributed": len(current.contributions),
                "outstanding": current.live,
                "quorum": current.quorum,
                "seconds": current.deadline_at - current.started_at,
            }
            self._effects.decide(DecisionKind.DEADLINE, CLUSTER, DeadlineReason.EXTENDED, figures)
            return None
        if current.contributions:
            return self._close(current, CloseReason.BELOW_QUORUM, now)
        self._deadlines.record_empty_round(now - current.started_at)
        return self._abandon(current, "nobody answered in time")

    def shorten_deadline(self, current: Round, now: float) -> None:
        """Where nothing was known before the round, its first contributors show how long it takes."""
        if not current.has_quorum:
            return
        seconds = self._deadlines.after_quorum(now - current.started_at)
        if current.started_at + seconds < current.deadline_at:
            current.deadline_at = current.started_at + seconds
            figures: Figures = {"seconds": seconds, "contributed": len(current.contributions)}
            self._effects.decide(DecisionKind.DEADLINE, CLUSTER, DeadlineReason.AFTER_QUORUM, figures)

    def _close(self, current: Round, reason: CloseReason, now: float) -> CloseRound:
        self._mark_stragglers(current)
        last = self._config.is_last(current.number)
        return CloseRound(
            current.number,
            current.all_contributions(now),
            reason,
            now - current.started_at,
            current.samples,
            current.mean_loss,
            evaluate=last or current.number % self._config.evaluate_every == 0,
            ended=self._members.drain_restarts(now),
        )

    def _abandon(self, current: Round, why: str) -> AbandonRound:
        self._mark_stragglers(current)
        self._effects.record("round_abandoned", f"round {current.number} will start again: {why}", reason=why)
        return AbandonRound(current.number, why, *current.shared_fault)

    def _mark_stragglers(self, current: Round) -> None:
        """Who still works on this round is not counted on until it shows up."""
        for unit in current.units.values():
            member = self._members.connected.get(unit.node)
            if member is not None and not unit.done and unit.live and not member.requesting:
                self._members.stragglers.add(unit.node)
