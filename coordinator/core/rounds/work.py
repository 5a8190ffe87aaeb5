"""State of an open round: its work units, who has contributed, and which units are free to take over."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Final

from hypergpu.common.connections import ONE_EACH, ONE_FOR_ALL, ConnectionPlan, Connections
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.transfer_codecs import NO_CODECS, TransferCodecs
from hypergpu.coordinator.core.rounds.deadlines import Deadline
from hypergpu.coordinator.core.rounds.events import (
    Contribution,
    LateUpdate,
    Repeated,
    Shard,
    UpdateArrived,
    WorkAssigned,
)


class WorkReason(StrEnum):
    """Reason for reassigning a work unit, or for not using an update as it came."""

    NODE_GONE = "node_gone"
    GIVEN_UP = "given_up"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    SMALLER_BATCH = "smaller_batch"
    TAKEN_OVER = "taken_over"
    AFTER_DEADLINE = "after_deadline"
    NOT_ORDERED = "not_ordered"
    WEIGHT_BOUNDED = "weight_bounded"
    NORM_TOO_LARGE = "norm_too_large"
    TRIAL_FAILED = "trial_failed"
    MERGED_LATE = "merged_late"
    TOO_STALE = "too_stale"
    MODEL_REVERTED = "model_reverted"
    RUN_OVER = "run_over"
    SUSPECTED = "suspected"
    USER = "user"


@dataclass(slots=True)
class WorkUnit:
    """One node's share of one round."""

    node: str
    shard: Shard
    batch_size: int
    local_steps: int
    optimizer: LocalOptimizer
    codecs: TransferCodecs = NO_CODECS
    earlier_codecs: frozenset[str] = frozenset()
    """Codecs of the update that abandoned attempts at the same round ordered: one of these is as good."""
    trial: bool = False
    """The node tries an optimizer or learning rate that differs from that of the others."""
    trial_failed: bool = False
    """That made its loss worse."""
    suspect: bool = False
    """Its update is only measured: the node is on probation as a suspect."""
    awaited: bool = True
    """The round waits for its update. It does not wait for a node on probation, nor for a probe of a link that may have
    recovered."""
    is_new: bool = False
    """True if the node has never been in time for a round, so that nobody knows how long it takes."""
    taken_over: bool = False
    """Another node had it before."""
    attempt: int = 0
    """Times that it was assigned; 0 = not yet."""
    returns: int = 0
    """Times that the node returned it."""
    returned_attempt: int = 0
    """Latest attempt that the node returned; 0 = none."""
    first_at: float = 0.0
    """Time at which the node's present process got it."""
    offered_at: float | None = None
    """Time at which the node offered its update; None before."""
    live: bool = True
    """An update is still expected."""
    done: bool = False
    """Its update was accepted."""
    incarnation: str = ""
    """Process of the node that works on it."""
    interrupted: bool = False
    """That process has ended, and the next one has not asked for work yet."""
    fault: str = ""
    """Kind of error for which it was last returned; empty if it was not, or if another attempt may succeed."""
    fault_detail: str = ""
    data_weight: int | None = None
    """Weight of its update in the mean by the data that the node alone holds; None = its number of samples."""

    def weight(self, samples: int) -> int:
        """Return the weight of its update in the mean, if so many samples of it count."""
        return samples if self.data_weight is None or not samples else self.data_weight

    @property
    def samples(self) -> int:
        """Number of samples to train on."""
        return self.batch_size * self.local_steps

    @property
    def expected_norm_scale(self) -> float:
        """Scale of the norm of its update: 1 for a gradient, steps × learning rate for a change of the parameters."""
        return self.local_steps * self.optimizer.learning_rate if self.local_steps > 1 else 1.0

    def order(
        self,
        round_number: int,
        deadline_at: float,
        accepted_round: int,
        *,
        connections: Connections = ONE_EACH,
        fragment: int | None = None,
        repeats: Repeated | None = None,
    ) -> WorkAssigned:
        """Return the order of the present attempt, in the place of a round; see `WorkAssigned`."""
        return WorkAssigned(
            round_number,
            self.node,
            self.attempt,
            self.batch_size,
            self.local_steps,
            self.optimizer.learning_rate,
            self.optimizer.name,
            self.shard,
            deadline_at,
            self.codecs,
            self.trial,
            accepted_round,
            connections,
            fragment,
            repeats,
        )


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """Settings of one round, which hold from its opening to its close."""

    quorum: float
    """Share of the updates that the round needs to count at its deadline."""
    close_share: float
    """Share of the awaited nodes whose updates close the round at once."""
    server_momentum: float | None
    """Momentum of the step after the round; None = as configured."""
    optimizer: LocalOptimizer
    """Optimizer of the nodes without a trial."""
    local_steps: int
    buffer_size: int | None = None
    """Updates that close the round, whichever they are; None = those of `close_share`."""
    momentum_every: int = 1
    """Rounds after which the momentum of the server is applied once."""
    connections: ConnectionPlan = ONE_FOR_ALL
    fragment: int | None = None
    """Number of the fragment that the round synchronises; None = the whole model."""
    awaits_return: bool = False
    """The update of a node that is gone is expected until it is back, as `training.deterministic` asks."""


MOST_LOSS: Final = 10.0
"""Largest training loss of a node that counts, in medians of its round: nodes say themselves what theirs is."""


def _mean_loss(losses: Sequence[tuple[int, float]]) -> float:
    """Return the mean of losses, given with their samples; none counts far beyond the median."""
    if not losses:
        return 0.0
    bound = MOST_LOSS * median(abs(loss) for _, loss in losses) or math.inf
    return sum(samples * max(-bound, min(loss, bound)) for samples, loss in losses) / sum(each[0] for each in losses)


@dataclass(slots=True)
class Round:
    """An open round. Each method takes O(1), except for those that read all units."""

    number: int
    started_at: float
    deadline_at: float
    units: dict[str, WorkUnit]
    settings: RoundSettings
    shortest_deadline_at: float = math.inf
    """Time that the deadline keeps at least when it is shortened, while a node is awaited that was measured before."""
    extensions: int = 0
    live: int = 0
    """Number of awaited units whose update is still expected."""
    live_measured: int = 0
    """Number of these whose node has been in time before."""
    awaited: int = 0
    """Number of awaited units."""
    contributions: list[Contribution] = field(default_factory=list)
    samples: int = 0
    late: list[LateUpdate] = field(default_factory=list)
    """Updates of earlier rounds that this one counts."""
    reserved: dict[str, WorkUnit] = field(default_factory=dict)
    """Units of nodes that may still join, when they have delivered the late work that they are at."""
    orphans: dict[str, WorkUnit] = field(default_factory=dict)
    """Units without a node, by the id of the former one. A newcomer gets one, or the former node when it returns."""

    @classmethod
    def open(
        cls, number: int, now: float, deadline: Deadline, units: Iterable[WorkUnit], settings: RoundSettings
    ) -> "Round":
        """Return a round in which no unit is assigned yet."""
        by_node = {unit.node: unit for unit in units}
        awaited = sum(unit.awaited for unit in by_node.values())
        shortest = now + deadline.shortest_seconds
        current = cls(number, now, now + deadline.seconds, by_node, settings, shortest, awaited=awaited)
        for unit in by_node.values():
            current._expect(unit, 1)
        return current

    def _expect(self, unit: WorkUnit, change: int) -> None:
        """Count a unit whose update is expected (1), or no longer is (-1)."""
        if unit.awaited:
            self.live += change
            self.live_measured += 0 if unit.is_new else change

    @property
    def has_quorum(self) -> bool:
        """True if enough of the nodes that can still contribute have done so."""
        done = len(self.contributions)
        return done >= 1 and done >= math.ceil(self.settings.quorum * (done + self.live) - 1e-9)

    @property
    def has_enough(self) -> bool:
        """True if enough of the nodes have contributed to close the round without the others."""
        share, buffer_size = self.settings.close_share, self.settings.buffer_size
        if buffer_size is not None:
            return len(self.contributions) + len(self.late) >= buffer_size
        return share < 1.0 and len(self.contributions) >= math.ceil(share * self.awaited - 1e-9)

    @property
    def is_empty(self) -> bool:
        """True if no update has arrived in the round."""
        return not self.contributions and not self.late

    @property
    def used_samples(self) -> int:
        """Samples of the updates that the round counts, those of late ones among them."""
        return self.samples + sum(each.samples for each in self.late)

    @property
    def mean_loss(self) -> float:
        """Mean training loss over the samples of the round; over those of late updates if there are no others."""
        counted = self.contributions if self.samples or not self.late else self.late
        return _mean_loss([(each.samples, each.loss) for each in counted if each.samples])

    def assign(self, unit: WorkUnit, now: float, accepted_round: int = 0) -> WorkAssigned:
        """Assign a unit to its node, again if it was before.

        `accepted_round` is the latest round whose update of this node was accepted.
        """
        if unit.attempt == 0 or unit.interrupted:  # time lost by a restart does not count against the link
            unit.first_at, unit.interrupted = now, False
        unit.attempt += 1
        unit.offered_at = None
        connections = self.settings.connections.of(unit.node)
        fragment = self.settings.fragment
        return unit.order(self.number, self.deadline_at, accepted_round, connections=connections, fragment=fragment)

    def accept(self, unit: WorkUnit, update: UpdateArrived, samples: int, now: float) -> float:
        """Count an update of so many samples; return the seconds from the assignment to its arrival."""
        if unit.live:
            self._expect(unit, -1)
        self.orphans.pop(unit.node, None)
        unit.live, unit.done = False, True
        seconds = now - unit.first_at
        compute_seconds = min(update.compute_seconds, seconds)  # it says of itself that it computed for longer
        waiting = seconds - compute_seconds
        self.samples += samples
        self.contributions.append(
            Contribution(
                unit.node,
                success=True,
                samples=samples,
                batch_size=unit.batch_size,
                local_steps=unit.local_steps,
                compute_seconds=compute_seconds,
                optimizer_share=update.optimizer_share,
                waiting_seconds=waiting if waiting > 0.0 else 0.0,
                loss=update.loss,
                loss_before=update.loss_before,
                loss_after=update.loss_after,
                trial_failed=unit.trial_failed,
                awaited=unit.awaited,
                codec=update.codec,
                noise=update.noise,
                parameters_codec=unit.codecs.parameters,
                connections=self.settings.connections.of(unit.node),
                upload_seconds=0.0 if unit.offered_at is None else min(now - unit.offered_at, max(waiting, 0.0)),
            )
        )
        return seconds

    def join(self, unit: WorkUnit, shard: Shard, incarnation: str) -> None:
        """Expect the update of a reserved unit from now on."""
        del self.reserved[unit.node]
        unit.shard, unit.incarnation = shard, incarnation
        self.units[unit.node] = unit
        self._expect(unit, 1)
        self.awaited += unit.awaited

    def drop(self, unit: WorkUnit) -> None:
        """Expect no update of this unit, unless another node takes it over."""
        unit.live = False
        self._expect(unit, -1)
        self.orphans[unit.node] = unit

    def note_restart(self, node: str, incarnation: str) -> None:
        """Note that the node registered; a new process starts its unit again."""
        unit = self.units.get(node)
        if unit is not None and not unit.done and unit.incarnation != incarnation:
            unit.incarnation, unit.interrupted = incarnation, True

    def reopen(self, node: str) -> None:
        """Expect the update of a node that has returned, unless another node took its unit over."""
        unit = self.orphans.pop(node, None)
        if unit is not None:
            unit.live = True
            self._expect(unit, 1)

    def reassign(self, node: str, incarnation: str, largest_batch: int) -> tuple[WorkUnit, str] | None:
        """Give an orphaned unit to a node that has none; return it and its former node.

        Not one of samples that its node alone holds.
        """
        former = next((node for node, orphan in self.orphans.items() if not orphan.shard.owner), None)
        if former is None:
            return None
        orphan = self.orphans.pop(former)
        del self.units[former]
        batch = min(orphan.batch_size, largest_batch) if largest_batch else orphan.batch_size
        unit = self.units[node] = WorkUnit(
            node,
            orphan.shard,
            batch,
            orphan.local_steps,
            self.settings.optimizer,
            orphan.codecs,
            taken_over=True,
            incarnation=incarnation,
        )
        self._expect(unit, 1)
        self.awaited += not orphan.awaited
        return unit, former

    @property
    def shared_fault(self) -> tuple[str, str]:
        """Kind of error for which every unit was returned, with the detail of one of them.

        Both are empty if the kinds differ, or if a unit was not returned.
        """
        faults = {unit.fault: unit.fault_detail for unit in self.units.values()}
        kind, detail = next(iter(faults.items()))
        return (kind, detail) if kind and len(faults) == 1 else ("", "")

    def all_contributions(self, now: float) -> list[Contribution]:
        """Return the contribution of every selected node, including those that did nothing."""
        missing = (unit for unit in self.units.values() if not unit.done)
        return self.contributions + [
            Contribution(
                unit.node,
                success=False,
                batch_size=unit.batch_size,
                local_steps=unit.local_steps,
                waiting_seconds=now - (unit.first_at if unit.attempt else self.started_at),
                late=unit.live and not unit.interrupted,
                measured=unit.live and not unit.interrupted,
                trial_failed=unit.trial_failed,
                awaited=unit.awaited,
                codec=unit.codecs.update,
                parameters_codec=unit.codecs.parameters,
                connections=self.settings.connections.of(unit.node),
            )
            for unit in missing
        ]
