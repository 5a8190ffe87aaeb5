"""What happens to units of work while a round runs: handed out, taken over, given up, answered."""

from typing import Final

from hypergpu.coordinator.core import events as ev
from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.journal import Figures, Journal
from hypergpu.coordinator.core.membership import Member
from hypergpu.coordinator.core.update_norms import FACTOR, Outlier
from hypergpu.coordinator.core.work import Order, Round, WorkReason

_ACCEPTED: Final = ev.Outcome.ACCEPTED
MAX_RETURNS = 3
"""Times that one node may give the same unit of work up before it is left out of the round."""
OUT_OF_MEMORY = "OutOfMemory"
FINAL_REASONS = frozenset({"shutting_down", "leaving"})
"""Reasons of `WorkReturned` after which the node is not asked again in this round."""
PASSING_REASONS = FINAL_REASONS | {"Unavailable", "DeadlineExceeded", "CorruptData", "Abandoned"}
"""Reasons that say nothing about the next round."""


class WorkDesk:
    """Moves orders between the nodes of a round, and records why."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def hand_out(self, current: Round, member: Member, now: float) -> None:
        """Give a node that asks its work of this round, if it has any."""
        order = current.orders.get(member.node_id)
        if order is None and member.joined_at >= current.started_at and member.rule is not ev.Rule.EXCLUDE:
            order = self._take_over(current, member)
        if order is None or order.done or not order.live:
            return
        if order.attempt > order.returns:
            member.retries += 1  # it asks again without a word: a broken stream, or a restart
        member.asking = False
        self._journal.effect(current.hand_out(order, now))

    def accept(self, current: Round, event: ev.UpdateArrived, member: Member, now: float) -> tuple[Order, int, float]:
        """Count an update; returns its order, its weight in samples, and the seconds that the node needed for it."""
        order = current.orders[event.node]
        weight = min(event.samples, order.samples)
        if weight < event.samples:
            figures: Figures = {"claimed_samples": event.samples, "ordered_samples": weight}
            self._journal.decide(DecisionKind.UPDATE, event.node, WorkReason.WEIGHT_BOUNDED, figures)
        seconds = current.accept(order, event, weight, now)
        member.last_accepted = event.round
        member.rounds_contributed += 1
        member.compute_seconds = event.compute_seconds
        self._journal.effect(ev.Verdict(event.node, event.round, _ACCEPTED, weight))
        return order, weight, seconds

    def refuse(self, event: ev.UpdateArrived, outcome: ev.Outcome, member: Member | None, at_round: int) -> None:
        """Answer an update that is not used, and say why."""
        figures: Figures = {"of_round": event.round, "at_round": at_round}
        if member is not None and outcome is ev.Outcome.LATE:
            member.late += 1
            self._journal.decide(DecisionKind.UPDATE, event.node, WorkReason.AFTER_DEADLINE, figures)
        elif member is not None and outcome is ev.Outcome.DUPLICATE:
            member.retries += 1
        elif outcome is ev.Outcome.STALE:
            self._journal.decide(DecisionKind.UPDATE, event.node, WorkReason.NOT_ORDERED, figures)
        detail = f"round {event.round} of {event.node}; the run is at round {at_round}"
        self._journal.effect(ev.Verdict(event.node, event.round, outcome, detail=detail))

    def refuse_outlier(self, current: Round, event: ev.UpdateArrived, outlier: Outlier) -> None:
        """Answer an update whose norm is out of bounds, name the node, and expect nothing more of it in this round."""
        order = current.orders[event.node]
        figures: Figures = {"norm": outlier.norm, "bound": outlier.bound, "median": outlier.median}
        self._journal.decide(DecisionKind.UPDATE, event.node, WorkReason.NORM_TOO_LARGE, figures)
        detail = (
            f"the update of {event.node} has norm {outlier.norm:.4g}: above {outlier.bound:.4g}, "
            f"which is {FACTOR:g} times the median of the updates accepted lately"
        )
        self._journal.record("update_refused", detail, node=event.node, round=event.round, **figures)
        self._journal.effect(ev.Verdict(event.node, event.round, ev.Outcome.REFUSED, detail=detail))
        order.fault, order.fault_detail = str(WorkReason.NORM_TOO_LARGE), detail
        if order.live:
            self.drop(current, order, WorkReason.NORM_TOO_LARGE, f"norm {outlier.norm:.4g}")

    def take_back(self, current: Round, event: ev.WorkReturned, member: Member, now: float) -> None:
        """A node gave its work up: it is asked again, with less where less may fit, or left out of the round."""
        order = current.orders.get(event.node)
        if order is None or order.done or not order.live or order.attempt == 0:
            return
        member.retries += 1
        order.returns += 1
        passing = event.reason in PASSING_REASONS
        order.fault, order.fault_detail = ("", "") if passing else (event.reason, event.detail)
        text = f"{event.node} gave its work up: {event.reason}" + (f" ({event.detail})" if event.detail else "")
        self._journal.record("work_returned", text, node=event.node, reason=event.reason, detail=event.detail)
        if event.reason in FINAL_REASONS:
            self.drop(current, order, WorkReason.GIVEN_UP, event.reason)
        elif event.reason == OUT_OF_MEMORY and order.batch_size > 1:
            order.batch_size = member.batch_size = order.batch_size // 2
            figures: Figures = {"batch_size": order.batch_size}
            self._journal.decide(DecisionKind.BATCH_SIZE, event.node, WorkReason.SMALLER_BATCH, figures)
        elif order.returns >= MAX_RETURNS:
            self.drop(current, order, WorkReason.TOO_MANY_ATTEMPTS, event.reason)
        if member.asking:
            self.hand_out(current, member, now)

    def drop(self, current: Round, order: Order, why: WorkReason, because: str) -> None:
        """Nobody is expected to answer this order any more, unless another takes it over."""
        current.drop(order)
        figures: Figures = {"because": because, "outstanding": current.live}
        self._journal.decide(DecisionKind.REASSIGNMENT, order.node, why, figures)

    def _take_over(self, current: Round, member: Member) -> Order | None:
        """A node that came during this round gets the work of one that went."""
        taken = current.take_over(member.node_id, member.incarnation, member.largest_batch)
        if taken is None:
            return None
        order, former = taken
        member.batch_size = order.batch_size
        member.rounds_selected += 1
        figures: Figures = {"former": former, "shard": order.shard.index}
        self._journal.decide(DecisionKind.REASSIGNMENT, member.node_id, WorkReason.TAKEN_OVER, figures)
        return order
