"""The units of work of one round: who holds which, who has contributed, whose work is free to take."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from hypergpu.coordinator.core.events import Assign, Contribution, Shard, UpdateArrived


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
class Order:
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
    orders: dict[str, Order]
    extensions: int = 0
    live: int = 0
    """Orders that may still be answered."""
    contributions: list[Contribution] = field(default_factory=list)
    samples: int = 0
    loss_sum: float = 0.0
    orphans: dict[str, Order] = field(default_factory=dict)
    """Orders whose node is gone, by its id: for newcomers, or for its return."""

    @classmethod
    def begin(cls, number: int, now: float, deadline_at: float, quorum: float, orders: Iterable[Order]) -> "Round":
        """A round in which nothing is handed out yet."""
        by_node = {order.node: order for order in orders}
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

    def hand_out(self, order: Order, now: float) -> Assign:
        """The order as the node gets it, once more."""
        if order.attempt == 0 or order.interrupted:  # what a process lost when it ended is no fault of the link
            order.first_at, order.interrupted = now, False
        order.attempt += 1
        return Assign(
            self.number,
            order.node,
            order.attempt,
            order.batch_size,
            order.local_steps,
            order.learning_rate,
            order.shard,
            self.deadline_at,
        )

    def accept(self, order: Order, update: UpdateArrived, weight: int, now: float) -> float:
        """Count an update; returns the seconds that the node needed for it."""
        if order.live:
            self.live -= 1
        self.orphans.pop(order.node, None)
        order.live, order.done = False, True
        seconds = now - order.first_at
        self.samples += weight
        self.loss_sum += weight * update.loss
        self.contributions.append(
            Contribution(
                order.node,
                success=True,
                samples=weight,
                batch_size=order.batch_size,
                compute_seconds=update.compute_seconds,
                waiting_seconds=max(0.0, seconds - update.compute_seconds),
                loss=update.loss,
                loss_before=update.loss_before,
            )
        )
        return seconds

    def drop(self, order: Order) -> None:
        """Nobody is expected to answer this order any more."""
        order.live = False
        self.live -= 1
        self.orphans[order.node] = order

    def restarted(self, node: str, incarnation: str) -> None:
        """The node registered: where that is another process, it begins its work anew."""
        order = self.orders.get(node)
        if order is not None and not order.done and order.incarnation != incarnation:
            order.incarnation, order.interrupted = incarnation, True

    def reinstate(self, node: str) -> None:
        """The node is back, and its work was not taken by another."""
        order = self.orphans.pop(node, None)
        if order is not None:
            order.live = True
            self.live += 1

    def take_over(self, node: str, incarnation: str, largest_batch: int) -> tuple[Order, str] | None:
        """Give an orphaned order to a node that has none; returns it and whose it was."""
        if not self.orphans:
            return None
        former = next(iter(self.orphans))
        orphan = self.orphans.pop(former)
        del self.orders[former]
        batch = min(orphan.batch_size, largest_batch) if largest_batch else orphan.batch_size
        order = self.orders[node] = Order(
            node, orphan.shard, batch, orphan.local_steps, orphan.learning_rate, incarnation=incarnation
        )
        self.live += 1
        return order, former

    @property
    def shared_fault(self) -> tuple[str, str]:
        """Kind of error that every order was given up for, and its details as one node told them.

        Both are empty where the kinds differ, or where an order was not given up.
        """
        faults = {order.fault: order.fault_detail for order in self.orders.values()}
        kind, detail = next(iter(faults.items()))
        return (kind, detail) if kind and len(faults) == 1 else ("", "")

    def outcome(self, now: float) -> list[Contribution]:
        """What everyone did, those who did nothing included."""
        missing = (order for order in self.orders.values() if not order.done)
        return self.contributions + [
            Contribution(
                order.node,
                success=False,
                batch_size=order.batch_size,
                waiting_seconds=now - (order.first_at if order.attempt else self.started_at),
                late=order.live and order.attempt > 0,
                measured=order.live and not order.interrupted,
            )
            for order in missing
        ]
