"""Hostile nodes of a simulation: they know what the honest nodes of the round send."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hypergpu.common.tensors import Flat
from hypergpu.coordinator.core.rounds.events import WorkAssigned
from hypergpu.node.trainer import Update
from hypergpu.simulation.attacks import LAZY, OTHERS, Aggregate, AttackName, Byzantine, Situation, attack

Work = Callable[[WorkAssigned], Update]
"""Function that does a work unit as an honest node."""


class Adversaries:
    """Updates that the hostile nodes of a run send.

    Args:
        attacks: Attack of each hostile node.
        aggregate: What they expect of the coordinator.
        seed: Seed of random numbers.
        received: Returns the parameters that a work unit begins with.
    """

    def __init__(
        self,
        attacks: Mapping[str, Byzantine],
        aggregate: Aggregate,
        seed: int,
        received: Callable[[WorkAssigned], Flat],
    ) -> None:
        self._attacks, self._aggregate, self._seed = attacks, aggregate, seed
        self._received = received
        self._first: dict[str, Flat] = {}
        """Update that each node sends again and again."""
        self._before: dict[str, Flat] = {}
        """Parameters that each node received last."""
        self._orders: dict[str, WorkAssigned] = {}
        """Latest order of each node."""
        self._done: dict[tuple[str, int], Update] = {}
        """Updates of nodes, by round."""
        self._sent: list[tuple[int, Flat]] = []
        """Honest updates that have arrived, with their round."""

    def assigned(self, order: WorkAssigned) -> None:
        """Note that a node has its order."""
        self._orders[order.node] = order

    def update_of(self, order: WorkAssigned, work: Work) -> Update:
        """Return what a node sends; `work` does a unit honestly."""
        self._done = {key: update for key, update in self._done.items() if key[1] >= order.round - 1}
        self._sent = [each for each in self._sent if each[0] >= order.round]
        hostile = self._attacks.get(order.node)
        if hostile is not None and hostile.attack == "lazy" and self._attacks_in(order):
            return _lazily(order, work)
        own = self._honest(order, work)
        if hostile is None or not self._attacks_in(order):
            if order.repeats is None:
                self._sent.append((order.round, own.flat))
            return replace(own, flat=own.flat.copy())
        if hostile.attack in OTHERS:
            return replace(own, flat=self._by_itself(hostile.attack, order, own.flat))
        honest = self._known(hostile.attack, order, work)
        if not honest:
            return replace(own, flat=own.flat.copy())
        together = sum(order.round >= each.from_round for each in self._attacks.values())
        seed = self._seed * 1_000_003 + order.round
        situation = Situation(np.stack(honest), together, self._aggregate, seed)
        flat = attack(hostile.attack, hostile.strength, situation)
        return replace(own, flat=flat.copy())

    def _by_itself(self, name: AttackName, order: WorkAssigned, own: Flat) -> Flat:
        """Return what a node sends that needs no update of others; of wrong labels, it has learned already."""
        if name == "replay":
            return self._first.setdefault(order.node, own.copy()).copy()
        if name == "echo":
            now = self._received(order).copy()
            before = self._before.get(order.node)
            self._before[order.node] = now
            step = own if before is None else now - before if order.local_steps > 1 else before - now
            length = float(np.linalg.norm(step))
            return np.asarray(step * (float(np.linalg.norm(own)) / length) if length else own, np.float32)
        return own.copy()

    def _known(self, name: AttackName, order: WorkAssigned, work: Work) -> Sequence[Flat]:
        """Return the honest updates of a round: those that have been sent, for a copy, or else all."""
        if name == "mimic":
            return [flat for number, flat in self._sent if number == order.round]
        orders = [each for each in self._orders.values() if each.round == order.round and not each.trial]
        return [self._honest(each, work).flat for each in orders if not self._attacks_in(each)]

    def _attacks_in(self, order: WorkAssigned) -> bool:
        """Return whether a node attacks by an order; one that checks others does it honestly, to stay unnoticed."""
        hostile = self._attacks.get(order.node)
        return hostile is not None and order.repeats is None and order.round >= hostile.from_round

    def _honest(self, order: WorkAssigned, work: Work) -> Update:
        """Do a work unit honestly, once."""
        key = (order.node, order.round)
        if key not in self._done:
            update = work(order)
            self._done[key] = replace(update, flat=update.flat.copy())
        return self._done[key]

    def flips_labels(self, order: WorkAssigned) -> bool:
        """Return whether a node learns wrong labels."""
        return self._attacks_in(order) and self._attacks[order.node].attack == "label_flip"


def _lazily(order: WorkAssigned, work: Work) -> Update:
    """Return the update of a part of each batch, with the samples of all of it."""
    done = work(replace(order, batch_size=max(1, order.batch_size // LAZY)))
    steps = tuple(replace(step, samples=order.batch_size) for step in done.steps)
    return replace(done, flat=done.flat.copy(), steps=steps)
