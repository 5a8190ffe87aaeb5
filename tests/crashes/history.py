"""What nodes and watchers saw of a run, and the simple model that it is held against.

The model knows nothing of logs and checkpoints: a run is a sequence of rounds, each of them the mean of what its
contributors sent, added to the parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOMENTUM = 0.5


@dataclass
class History:
    """What was seen, in order."""

    told: list[tuple[int, int]] = field(default_factory=list)
    """(process, round) of each round that a watcher was told of."""
    orders: list[tuple[int, str, int, int]] = field(default_factory=list)
    """(process, node, round, accepted round) of each order that a node got."""
    accepted: list[tuple[int, str, int]] = field(default_factory=list)
    """(process, node, round) of each update that was acknowledged."""
    unsafe: set[tuple[int, int]] = field(default_factory=set)
    """(process, round) of each round that was told with the word that it is not on the disk."""
    seen: list[tuple[int, int]] = field(default_factory=list)
    """(process, round) of all of these and of the status, in order: rounds that are done."""


def update_of(node: str, number: int, size: int) -> Any:
    """Return what a node sends in a round: whole numbers, so that sums are exact in any order."""
    draws = np.random.default_rng([number, *node.encode()])
    return draws.integers(-8, 9, size).astype(np.float32)


def parameters_after(initial: Any, contributors: Sequence[Sequence[str]]) -> Any:
    """Return the parameters that the rounds lead to."""
    values, velocity = initial.copy(), np.zeros_like(initial)
    for number, nodes in enumerate(contributors, start=1):
        total = np.sum([4 * update_of(node, number, len(values)) for node in nodes], axis=0, dtype=np.float32)
        total *= np.float32(1.0 / (4 * len(nodes)))
        velocity = velocity * np.float32(MOMENTUM) + total
        values = values + velocity
    return values


def faults_of(history: History, rows: Sequence[Mapping[str, Any]], rounds: int, initial: Any, final: Any) -> list[str]:
    """Return what the model does not allow.

    Args:
        history: What was seen.
        rows: Lines of rounds.jsonl at the end.
        rounds: Rounds of the run.
        initial: Parameters that it began with.
        final: Parameters of its result.
    """
    faults = _order_of(history)
    numbers = [row["round"] for row in rows]
    if numbers != list(range(1, rounds + 1)):
        faults.append(f"rounds.jsonl has the rounds {numbers}")
        return faults
    contributors = [row["contributors"] for row in rows]
    doubled = [number for number, nodes in enumerate(contributors, 1) if len(set(nodes)) < len(nodes)]
    faults += [f"round {number} counts a node twice" for number in doubled]
    for process, node, number, accepted in history.orders:
        if accepted and node not in contributors[accepted - 1]:
            faults.append(f"process {process} told {node} that round {accepted} has its update, and it has not")
        if accepted >= number:
            faults.append(f"{node} got an order of round {number} when its update of round {accepted} was counted")
    closed_by = {number: process for process, number in history.told}
    for process, node, number in history.accepted:
        if closed_by.get(number) == process and node not in contributors[number - 1]:
            faults.append(f"the update of {node} for round {number} was acknowledged, and is lost")
    if not np.array_equal(final, parameters_after(initial, contributors)):
        faults.append("the weights are not those that the contributions lead to")
    return faults


def _order_of(history: History) -> list[str]:
    """Return where states went back."""
    faults, done = [], (0, 0)
    for process, number in history.seen:
        if number < done[1] and (done[0], number + 1) not in history.unsafe:
            faults.append(f"process {process} undid round {number + 1}, and round {done[1]} was done")
        if number >= done[1] or (done[0], number + 1) in history.unsafe:
            done = process, number
    numbers = [number for process, number in history.told if (process, number) not in history.unsafe]
    faults += [f"round {each} was told twice" for each in sorted(set(numbers)) if numbers.count(each) > 1]
    if numbers != sorted(numbers):
        faults.append(f"rounds were told in the order {numbers}")
    return faults
