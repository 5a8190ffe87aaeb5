"""Late work: units that were outstanding when their round closed, and whose updates count in a later one.

A late update is a change of the parameters that its node started from, τ rounds ago. It enters the mean of the round
that is open when it arrives, or of the next one, with the weight samples / √(1+τ) (Nguyen et al., "Federated learning
with buffered asynchronous aggregation", AISTATS 2022). τ is its staleness: the round that it enters less its own.

A node has one work unit at a time. Every late unit ends in exactly one way: it is merged, or dropped with a reason.
"""

from dataclasses import dataclass, field

from hypergpu.coordinator.core.decisions import DecisionKind, Figures
from hypergpu.coordinator.core.model.aggregation import staleness_weight
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.events import LateUpdate, UpdateArrived, UpdateReply, UpdateStatus
from hypergpu.coordinator.core.rounds.membership import Member, Membership
from hypergpu.coordinator.core.rounds.work import Round, WorkReason, WorkUnit


@dataclass(slots=True)
class LateUnit:
    """Work unit of a round that has closed, whose update is still wanted."""

    round: int
    unit: WorkUnit


@dataclass(slots=True)
class LateUnits:
    """Late units by node, and the late updates that the next round will count."""

    max_staleness: int = 0
    """Largest τ of an update that counts; 0 = late updates never count."""
    last_round: int = 0
    """Last round of the run; 0 = it has none."""
    units: dict[str, LateUnit] = field(default_factory=dict)
    merged: list[LateUpdate] = field(default_factory=list)
    """Updates that arrived while no round was open: they are in the mean of the next one."""

    def wanted(self, node: str, round_number: int, target: int) -> WorkUnit | None:
        """Return the late unit of a node if its update would count in round `target`, the open or the next one."""
        late = self.units.get(node)
        if late is None or late.round != round_number or target - round_number > self.max_staleness:
            return None
        return None if 0 < self.last_round < target else late.unit

    def keep(self, current: Round, members: Membership) -> None:
        """Keep the outstanding units of a round that closes, except for trials, whose updates are only measured."""
        if not self.max_staleness:
            return
        for node, unit in current.units.items():
            member = members.connected.get(node)
            outstanding = unit.live and not unit.done and not unit.interrupted and unit.attempt > 0
            if outstanding and not unit.trial and member is not None and not member.requesting:
                self.units[node] = LateUnit(current.number, unit)

    def take_merged(self) -> list[LateUpdate]:
        """Return the updates that arrived since the last round closed; the round that opens counts them."""
        merged, self.merged = self.merged, []
        return merged


def merge(
    late: LateUnits, event: UpdateArrived, member: Member, effects: EffectBuffer, *, target: int, current: Round | None
) -> int:
    """Count a wanted late update in round `target`; return its samples."""
    unit = late.units.pop(event.node).unit
    unit.live, unit.done = False, True
    samples, staleness = min(event.samples, unit.samples), target - event.round
    whole = unit.weight(samples)
    weight = whole * staleness_weight(staleness)
    update = LateUpdate(event.node, event.round, staleness, samples, weight, event.loss, event.compute_seconds)
    (late.merged if current is None else current.late).append(update)
    member.last_accepted = event.round
    member.rounds_contributed += 1
    member.merged_late += 1
    member.compute_seconds = event.compute_seconds
    member.codecs, member.noise = unit.codecs, event.noise
    figures: Figures = {"of_round": event.round, "at_round": target, "staleness": staleness, "weight": round(weight, 3)}
    effects.decide(DecisionKind.UPDATE, event.node, WorkReason.MERGED_LATE, figures)
    effects.reply(UpdateReply(event.node, event.round, UpdateStatus.ACCEPTED, whole, staleness=staleness))
    return samples


def drop(late: LateUnits, node: str, reason: WorkReason, effects: EffectBuffer) -> None:
    """Want the update of a node's late unit no longer, if it has one."""
    found = late.units.pop(node, None)
    if found is not None:
        found.unit.live = False
        effects.decide(DecisionKind.REASSIGNMENT, node, reason, {"of_round": found.round})


def expire(late: LateUnits, target: int, effects: EffectBuffer) -> None:
    """Drop the units whose updates would be too stale for round `target`, and for all after it."""
    for node in [node for node, each in late.units.items() if target - each.round > late.max_staleness]:
        drop(late, node, WorkReason.TOO_STALE, effects)


def clear(late: LateUnits, reason: WorkReason, effects: EffectBuffer) -> None:
    """Drop all late units, and forget the updates that wait for the next round."""
    for node in list(late.units):
        drop(late, node, reason, effects)
    for update in late.take_merged():
        effects.decide(DecisionKind.UPDATE, update.node, reason, {"of_round": update.round})
