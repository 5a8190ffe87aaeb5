"""The units of work of one round: who holds which, who has contributed, whose work is free to take."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from hypergpu.coordinator.core.rounds.events import Contribution, Shard, UpdateArrived, WorkAssigned


class WorkReason(StrEnum):
    """Why a unit of work changed hands, or an update was not used as it came."""

    NODE_GONE = "node_gone"
    GIVEN_UP = "given_up"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    SMALLER_BATCH = "smaller_batch"
    TAKEN_OVER = "taken_over"
    AFTER_DEADLINE = "after_deadline"
    NOT_ORDERED = "not_ordered"
    WEIGHT_BOUNDED = "weight_bounded"
    NORM_TOO_LARGE = "norm_too_large"
    USER = "user"


@dataclass(slots=True)
class WorkUnit:
    """One unit of work."""

    node: str
    shard: Shard
    batch_size: int
    local_steps: int
    learning_rate: float
    attempt: int = 0
    """Times that it was handed out."""
    returns: int = 0
    """Times that it was given up."""
    first_at: float = 0.0
    """When its process got it first."""
    live: bool = True
    """It may still be answered."""
    done: bool = False
    incarnation: str = ""
    """The process that is to do it."""
    interrupted: bool = False
    """The process that had it has ended, and the next one has not asked for it yet."""
    fault: str = ""
    """Kind of error that it was last given up for; empty where it never was, or where another try may help."""
    fault_detail: str = ""

    @property
    def samples(self) -> int:
        """How many it asks for: the most that an answer can weigh."""
        return self.batch_size * self.local_steps

    @property
    def expected_norm_scale(self) -> float:
        """What the norm of its update is proportional to: a gradient is one step; changes add up."""
        return self.local_steps * self.learning_rate if self.local_steps > 1 else 1.0


@dataclass(slots=True)
class Round:
    """A running round. Each call takes O(1)."""

    number: int
    started_at: float
    deadline_at: float
    quorum: float
    units: dict[str, WorkUnit]
    extensions: int = 0
    live: int = 0
    """Orders that may still be answered."""
    contributions: list[Contribution] = field(default_factory=list)
    samples: int = 0
    loss_sum: float = 0.0
    orphans: dict[str, WorkUnit] = field(default_factory=dict)
    """Orders whose node is gone, by its id: for newcomers, or for its return."""

    @classmethod
    def begin(cls, number: int, now: float, deadline_at: float, quorum: float, units: Iterable[WorkUnit]) -> "Round":
        """A round in which nothing is handed out yet."""
        by_node = {unit.node: unit for unit in units}
        return cls(number, now, deadline_at, quorum, by_node, live=len(by_node))

    @property
    def has_quorum(self) -> bool:
        """Enough of those who are still there have contributed."""
        done = len(self.contributions)
        return done >= 1 and done >= math.ceil(self.quorum * (done + self.live) - 1e-9)

    @property
    def mean_loss(self) -> float:
        """Training loss over the samples that were used."""
        return self.loss_sum / self.samples if self.samples else 0.0

    def assign(self, unit: WorkUnit, now: float) -> WorkAssigned:
        """The unit as the node gets it, once more."""
        if unit.attempt == 0 or unit.interrupted:  # what a process lost when it ended is no fault of the link
            unit.first_at, unit.interrupted = now, False
        unit.attempt += 1
        return WorkAssigned(
            self.number,
            unit.node,
            unit.attempt,
            unit.batch_size,
            unit.local_steps,
            unit.learning_rate,
            unit.shard,
            self.deadline_at,
        )

    def accept(self, unit: WorkUnit, update: UpdateArrived, weight: int, now: float) -> float:
        """Count an update; returns the seconds that the node needed for it."""
        if unit.live:
            self.live -= 1
        self.orphans.pop(unit.node, None)
        unit.live, unit.done = False, True
        seconds = now - unit.first_at
        self.samples += weight
        self.loss_sum += weight * update.loss
        self.contributions.append(
            Contribution(
                unit.node,
                success=True,
                samples=weight,
                batch_size=unit.batch_size,
                compute_seconds=update.compute_seconds,
                waiting_seconds=max(0.0, seconds - update.compute_seconds),
                loss=update.loss,
                loss_before=update.loss_before,
            )
        )
        return seconds

    def drop(self, unit: WorkUnit) -> None:
        """Nobody is expected to answer this unit any more."""
        unit.live = False
        self.live -= 1
        self.orphans[unit.node] = unit

    def restarted(self, node: str, incarnation: str) -> None:
        """The node registered: where that is another process, it begins its work anew."""
        unit = self.units.get(node)
        if unit is not None and not unit.done and unit.incarnation != incarnation:
            unit.incarnation, unit.interrupted = incarnation, True

    def reopen(self, node: str) -> None:
        """The node is back, and its work was not taken by another."""
        unit = self.orphans.pop(node, None)
        if unit is not None:
            unit.live = True
            self.live += 1

    def reassign(self, node: str, incarnation: str, largest_batch: int) -> tuple[WorkUnit, str] | None:
        """Give an orphaned unit to a node that has none; returns it and whose it was."""
        if not self.orphans:
            return None
        former = next(iter(self.orphans))
        orphan = self.orphans.pop(former)
        del self.units[former]
        batch = min(orphan.batch_size, largest_batch) if largest_batch else orphan.batch_size
        unit = self.units[node] = WorkUnit(
            node, orphan.shard, batch, orphan.local_steps, orphan.learning_rate, incarnation=incarnation
        )
        self.live += 1
        return unit, former

    @property
    def shared_fault(self) -> tuple[str, str]:
        """Kind of error that every unit was given up for, and its details as one node told them.

        Both are empty where the kinds differ, or where a work unit was not given up.
        """
        faults = {unit.fault: unit.fault_detail for unit in self.units.values()}
        kind, detail = next(iter(faults.items()))
        return (kind, detail) if kind and len(faults) == 1 else ("", "")

    def all_contributions(self, now: float) -> list[Contribution]:
        """What everyone did, those who did nothing included."""
        missing = (unit for unit in self.units.values() if not unit.done)
        return self.contributions + [
            Contribution(
                unit.node,
                success=False,
                batch_size=unit.batch_size,
                waiting_seconds=now - (unit.first_at if unit.attempt else self.started_at),
                late=unit.live and unit.attempt > 0,
                measured=unit.live and not unit.interrupted,
            )
            for unit in missing
        ]
