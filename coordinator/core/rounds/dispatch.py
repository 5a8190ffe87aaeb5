"""What happens to units of work while a round runs: handed out, taken over, given up, answered."""

from typing import Final

from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Adaptation
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer, Figures
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.rounds.update_norms import FACTOR, Outlier
from hypergpu.coordinator.core.rounds.work import Round, WorkReason, WorkUnit

_ACCEPTED: Final = ev.UpdateStatus.ACCEPTED
MAX_RETURNS = 3
"""Times that one node may give the same unit of work up before it is left out of the round."""
OUT_OF_MEMORY = "OutOfMemory"
FINAL_REASONS = frozenset({"shutting_down", "leaving"})
"""Reasons of `WorkReturned` after which the node is not asked again in this round."""
PASSING_REASONS = FINAL_REASONS | {"Unavailable", "DeadlineExceeded", "CorruptData", "WorkAbandoned"}
"""Reasons that say nothing about the next round."""


class WorkDispatcher:
    """Moves work units between the nodes of a round, and records why."""

    def __init__(self, effects: EffectBuffer, adaptation: Adaptation) -> None:
        self._effects = effects
        self._adaptation = adaptation
        self.last_reply = ev.UpdateReply("", 0, ev.UpdateStatus.STALE)
        """Reply to the update that was handled last."""

    def assign(self, current: Round, member: Member, now: float) -> None:
        """Give a node that asks its work of this round, if it has any."""
        unit = current.units.get(member.node_id)
        if unit is None and member.joined_at >= current.started_at and not self._is_excluded(member):
            unit = self._reassign(current, member)
        if unit is None or unit.done or not unit.live:
            return
        if unit.attempt > unit.returns:
            member.retries += 1  # it asks again without a word: a broken stream, or a restart
        member.requesting = False
        self._effects.emit(current.assign(unit, now))

    def accept(
        self, current: Round, event: ev.UpdateArrived, member: Member, now: float
    ) -> tuple[WorkUnit, int, float]:
        """Count an update; returns its unit, its weight in samples, and the seconds that the node needed for it."""
        unit = current.units[event.node]
        weight = min(event.samples, unit.samples)
        if weight < event.samples:
            figures: Figures = {"claimed_samples": event.samples, "ordered_samples": weight}
            self._effects.decide(DecisionKind.UPDATE, event.node, WorkReason.WEIGHT_BOUNDED, figures)
        seconds = current.accept(unit, event, weight, now)
        member.last_accepted = event.round
        member.rounds_contributed += 1
        member.compute_seconds = event.compute_seconds
        self._reply(ev.UpdateReply(event.node, event.round, _ACCEPTED, weight))
        return unit, weight, seconds

    def refuse(self, event: ev.UpdateArrived, status: ev.UpdateStatus, member: Member | None, at_round: int) -> None:
        """Answer an update that is not used, and say why."""
        figures: Figures = {"of_round": event.round, "at_round": at_round}
        if member is not None and status is ev.UpdateStatus.LATE:
            member.late += 1
            self._effects.decide(DecisionKind.UPDATE, event.node, WorkReason.AFTER_DEADLINE, figures)
        elif member is not None and status is ev.UpdateStatus.DUPLICATE:
            member.retries += 1
        elif status is ev.UpdateStatus.STALE:
            self._effects.decide(DecisionKind.UPDATE, event.node, WorkReason.NOT_ORDERED, figures)
        detail = f"round {event.round} of {event.node}; the run is at round {at_round}"
        self._reply(ev.UpdateReply(event.node, event.round, status, detail=detail))

    def refuse_outlier(self, current: Round, event: ev.UpdateArrived, outlier: Outlier) -> None:
        """Answer an update whose norm is out of bounds, name the node, and expect nothing more of it in this round."""
        unit = current.units[event.node]
        figures: Figures = {"norm": outlier.norm, "bound": outlier.bound, "median": outlier.median}
        self._effects.decide(DecisionKind.UPDATE, event.node, WorkReason.NORM_TOO_LARGE, figures)
        detail = (
            f"the update of {event.node} has norm {outlier.norm:.4g}: above {outlier.bound:.4g}, "
            f"which is {FACTOR:g} times the median of the updates accepted lately"
        )
        self._effects.record("update_refused", detail, node=event.node, round=event.round, **figures)
        self._reply(ev.UpdateReply(event.node, event.round, ev.UpdateStatus.REFUSED, detail=detail))
        unit.fault, unit.fault_detail = str(WorkReason.NORM_TOO_LARGE), detail
        if unit.live:
            self.drop(current, unit, WorkReason.NORM_TOO_LARGE, f"norm {outlier.norm:.4g}")

    def return_work(self, current: Round, event: ev.WorkReturned, member: Member, now: float) -> None:
        """A node gave its work up: it is asked again, with less where less may fit, or left out of the round."""
        unit = current.units.get(event.node)
        if unit is None or unit.done or not unit.live or unit.attempt == 0:
            return
        member.retries += 1
        unit.returns += 1
        passing = event.reason in PASSING_REASONS
        unit.fault, unit.fault_detail = ("", "") if passing else (event.reason, event.detail)
        text = f"{event.node} gave its work up: {event.reason}" + (f" ({event.detail})" if event.detail else "")
        self._effects.record("work_returned", text, node=event.node, reason=event.reason, detail=event.detail)
        if event.reason in FINAL_REASONS:
            self.drop(current, unit, WorkReason.GIVEN_UP, event.reason)
        elif event.reason == OUT_OF_MEMORY and unit.batch_size > 1:
            unit.batch_size = member.batch_size = unit.batch_size // 2
            figures: Figures = {"batch_size": unit.batch_size}
            self._effects.decide(DecisionKind.BATCH_SIZE, event.node, WorkReason.SMALLER_BATCH, figures)
        elif unit.returns >= MAX_RETURNS:
            self.drop(current, unit, WorkReason.TOO_MANY_ATTEMPTS, event.reason)
        if member.requesting:
            self.assign(current, member, now)

    def drop(self, current: Round, unit: WorkUnit, why: WorkReason, because: str) -> None:
        """Nobody is expected to answer this unit any more, unless another takes it over."""
        current.drop(unit)
        figures: Figures = {"because": because, "outstanding": current.live}
        self._effects.decide(DecisionKind.REASSIGNMENT, unit.node, why, figures)

    def _is_excluded(self, member: Member) -> bool:
        return self._adaptation.override(member.node_id) is NodeOverride.EXCLUDE

    def _reassign(self, current: Round, member: Member) -> WorkUnit | None:
        """A node that came during this round gets the work of one that went."""
        taken = current.reassign(member.node_id, member.incarnation, member.largest_batch)
        if taken is None:
            return None
        unit, former = taken
        member.batch_size = unit.batch_size
        member.rounds_selected += 1
        figures: Figures = {"former": former, "shard": unit.shard.index}
        self._effects.decide(DecisionKind.REASSIGNMENT, member.node_id, WorkReason.TAKEN_OVER, figures)
        return unit

    def _reply(self, reply: ev.UpdateReply) -> None:
        self.last_reply = reply
        self._effects.emit(reply)
