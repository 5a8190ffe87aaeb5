"""Dispatch of work units in an open round: assigned, reassigned, returned, answered. Each function takes O(1)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hypergpu.coordinator.core.decisions import DecisionKind, Figures
from hypergpu.coordinator.core.overrides import NodeOverride, Overrides
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Activity, LateWork
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.membership import Assignment, Member
from hypergpu.coordinator.core.rounds.suspicion import Accusation
from hypergpu.coordinator.core.rounds.update_norms import FACTOR, Outlier
from hypergpu.coordinator.core.rounds.work import Round, WorkReason, WorkUnit

_ACCEPTED: Final = ev.UpdateStatus.ACCEPTED
_EXCLUDE: Final = NodeOverride.EXCLUDE
MAX_RETURNS = 3
"""Times that a node may return the same work unit before it is left out of the round."""
OUT_OF_MEMORY = "OutOfMemory"
NOT_FINITE = "NonFiniteUpdate"
FINAL_REASONS = frozenset({"shutting_down", "leaving"})
"""Reasons for `WorkReturned` after which the node gets no work in this round."""
PASSING_REASONS = FINAL_REASONS | {"Unavailable", "DeadlineExceeded", "CorruptData", "WorkAbandoned"}
"""Reasons for `WorkReturned` that do not predict the next round."""


def assign(current: Round, member: Member, overrides: Overrides, now: float, effects: EffectBuffer) -> None:
    """Give a node that asks for work its work unit of this round, if it has one."""
    unit = current.units.get(member.node_id)
    if unit is None and member.joined_at >= current.started_at:
        excluded = overrides.of(member.node_id) is _EXCLUDE
        unit = None if excluded else _reassign(current, member, effects)
    if unit is None or unit.done or not unit.live:
        return
    if unit.attempt > unit.returns:
        member.retries += 1  # asked again without returning the work: a broken stream, or a restart
    member.requesting = False
    effects.emit(current.assign(unit, now, member.last_accepted))
    member.assignment = Assignment(
        current.number, unit.first_at, unit.batch_size, unit.local_steps, current.deadline_at
    )


def accept_update(
    current: Round,
    event: ev.UpdateArrived,
    member: Member,
    now: float,
    effects: EffectBuffer,
    *,
    measured: bool = False,
) -> tuple[int, float]:
    """Count an update; return the samples of it that count, and the seconds that the node needed for it.

    The gain of one that is `measured` is of interest if it counts.
    """
    unit = current.units[event.node]
    samples = min(event.samples, unit.samples)
    if unit.trial:  # measured only: a rate that may be far too high must not touch the model
        unit.trial_failed = event.loss_after is not None and not event.loss_after < event.loss_before
        samples = 0
    elif unit.suspect:
        samples = 0
    elif samples < event.samples:
        figures: Figures = {"claimed_samples": event.samples, "ordered_samples": samples}
        effects.decide(DecisionKind.UPDATE, event.node, WorkReason.WEIGHT_BOUNDED, figures)
    unit.codecs = replace(unit.codecs, update=event.codec)
    seconds = current.accept(unit, event, samples, now)
    member.last_accepted = event.round
    member.assignment = None
    member.rounds_contributed += 1
    member.compute_seconds = event.compute_seconds
    member.codecs, member.noise = unit.codecs, event.noise
    member.connections = current.settings.connections.of(event.node)
    weight = unit.weight(samples)
    effects.reply(ev.UpdateReply(event.node, event.round, _ACCEPTED, weight, measured=measured and weight > 0))
    return samples, seconds


def accuse(accusations: Sequence[Accusation], effects: EffectBuffer) -> None:
    """Record whom the updates of a round make suspects, and who no longer is one."""
    for each in accusations:
        effects.decide(DecisionKind.QUARANTINE, each.node, each.reason, each.figures)
        if "suspended_rounds" in each.figures:
            shown = ", ".join(f"{name} {value}" for name, value in each.figures.items() if name != "state")
            text = f"{each.node} is suspected: {each.reason} ({shown})"
            effects.record("node_suspected", text, node=each.node, reason=str(each.reason))


def refuse_update(
    event: ev.UpdateArrived, status: ev.UpdateStatus, member: Member | None, current_round: int, effects: EffectBuffer
) -> None:
    """Answer an update that is not used, and record why."""
    figures: Figures = {"of_round": event.round, "at_round": current_round}
    if member is not None and status is ev.UpdateStatus.LATE:
        member.late += 1
        late = {**figures, "compute_seconds": event.compute_seconds}
        effects.decide(DecisionKind.UPDATE, event.node, WorkReason.AFTER_DEADLINE, late)
    elif member is not None and status is ev.UpdateStatus.DUPLICATE:
        member.retries += 1
    elif status is ev.UpdateStatus.STALE:
        effects.decide(DecisionKind.UPDATE, event.node, WorkReason.NOT_ORDERED, figures)
    detail = f"update of {event.node} for round {event.round}, current round is {current_round}"
    effects.reply(ev.UpdateReply(event.node, event.round, status, detail=detail))


def late_work(
    member: Member,
    round_number: int,
    doing: Activity,
    now: float,
    *,
    compute_seconds: float,
    awaited: bool,
    received_share: float,
    merged: bool,
) -> LateWork | None:
    """Return what is known now of the work of a round that closed without it, once for each; None if it was told."""
    given = member.assignment
    if given is None or given.round != round_number:
        return None
    member.assignment = None
    elapsed = now - given.at
    if doing is Activity.DONE:
        compute_seconds = min(compute_seconds, elapsed)
    return LateWork(
        member.node_id,
        elapsed,
        doing,
        compute_seconds,
        given.batch_size,
        given.local_steps,
        allowed_seconds=given.deadline_at - given.at,
        awaited=awaited,
        received_share=received_share,
        merged=merged,
    )


def refuse_outlier(
    current: Round | None, unit: WorkUnit, event: ev.UpdateArrived, outlier: Outlier, effects: EffectBuffer
) -> None:
    """Answer an update whose norm is out of bounds, and expect nothing more of its node in its round.

    `current` is that round while it is open.
    """
    figures: Figures = {"norm": outlier.norm, "bound": outlier.bound, "median": outlier.median}
    effects.decide(DecisionKind.UPDATE, event.node, WorkReason.NORM_TOO_LARGE, figures)
    detail = (
        f"refused the update of {event.node}: norm {outlier.norm:.4g} exceeds {outlier.bound:.4g}, "
        f"{FACTOR:g} times the median of recently accepted updates"
    )
    effects.record("update_refused", detail, node=event.node, round=event.round, **figures)
    effects.reply(ev.UpdateReply(event.node, event.round, ev.UpdateStatus.REFUSED, detail=detail))
    unit.fault, unit.fault_detail = str(WorkReason.NORM_TOO_LARGE), detail
    if current is not None and unit.live:
        drop(current, unit, WorkReason.NORM_TOO_LARGE, f"norm {outlier.norm:.4g}", effects)


def return_work(current: Round, event: ev.WorkReturned, member: Member, effects: EffectBuffer) -> bool:
    """Take work back from a node, and return whether it held any. Each attempt is returned once at most.

    The node may ask for it again, with half the batch if memory ran out, unless it is left out of the round. A round
    that awaits the return of its nodes leaves none out for what does not come from the node's computation.
    """
    unit = current.units.get(event.node)
    if unit is None or unit.done or not unit.live or not unit.returned_attempt < event.attempt == unit.attempt:
        return False
    member.retries += 1
    unit.returns += 1
    unit.returned_attempt = event.attempt
    passing = event.reason in PASSING_REASONS
    unit.fault, unit.fault_detail = ("", "") if passing else (event.reason, event.detail)
    text = f"{event.node} returned its work: {event.reason}" + (f" ({event.detail})" if event.detail else "")
    effects.record("work_returned", text, node=event.node, reason=event.reason, detail=event.detail)
    if unit.trial and event.reason == NOT_FINITE:
        unit.trial_failed = True
        drop(current, unit, WorkReason.TRIAL_FAILED, event.reason, effects)
    elif passing and current.settings.awaits_return:
        pass  # it is done again, by the node or by its next process
    elif event.reason in FINAL_REASONS:
        drop(current, unit, WorkReason.GIVEN_UP, event.reason, effects)
    elif event.reason == OUT_OF_MEMORY and unit.batch_size > 1:
        unit.batch_size = member.batch_size = unit.batch_size // 2
        figures: Figures = {"batch_size": unit.batch_size}
        effects.decide(DecisionKind.BATCH_SIZE, event.node, WorkReason.SMALLER_BATCH, figures)
    elif unit.returns >= MAX_RETURNS:
        drop(current, unit, WorkReason.TOO_MANY_ATTEMPTS, event.reason, effects)
    return True


def drop(current: Round, unit: WorkUnit, reason: WorkReason, because: str, effects: EffectBuffer) -> None:
    """Expect no answer to a work unit, unless another node takes it over."""
    current.drop(unit)
    figures: Figures = {"because": because, "outstanding": current.live}
    effects.decide(DecisionKind.REASSIGNMENT, unit.node, reason, figures)


def _reassign(current: Round, member: Member, effects: EffectBuffer) -> WorkUnit | None:
    """Give the work of a node that is gone to one that joined during this round."""
    reassigned = current.reassign(member.node_id, member.incarnation, member.largest_batch)
    if reassigned is None:
        return None
    unit, former = reassigned
    member.batch_size = unit.batch_size
    member.rounds_selected += 1
    figures: Figures = {"former": former, "shard": unit.shard.index}
    effects.decide(DecisionKind.REASSIGNMENT, member.node_id, WorkReason.TAKEN_OVER, figures)
    return unit
