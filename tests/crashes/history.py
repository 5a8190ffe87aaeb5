"""What nodes and watchers saw of a run, and the simple model that it is held against.

The model knows nothing of logs and checkpoints: a run is a sequence of rounds, each of them the mean of what its
contributors sent, and of what is late, added to the parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

MOMENTUM = 0.5

Row = Mapping[str, Any]
"""Line of rounds.jsonl."""


@dataclass
class History:
    """What was seen, in order."""

    told: list[tuple[int, int]] = field(default_factory=list)
    """(process, round) of each round that a watcher was told of."""
    orders: list[tuple[int, str, int, int, int]] = field(default_factory=list)
    """(process, node, round, accepted round, due) of each order that a node got. The accepted update is that of a
    closed round, and `due` is 0; or it is late, and is lost if the process ends before the round `due` is closed."""
    accepted: list[tuple[int, str, int, int]] = field(default_factory=list)
    """(process, node, round, due) of each update that was acknowledged; a round counts it that is not after `due`."""
    unsafe: set[tuple[int, int]] = field(default_factory=set)
    """(process, round) of each round that was told with the word that it is not on the disk."""
    seen: list[tuple[int, int]] = field(default_factory=list)
    """(process, round) of all of these and of the status, in order: rounds that are done."""


def update_of(node: str, number: int, size: int) -> Any:
    """Return what a node sends in a round: whole numbers, so that sums are exact in any order."""
    draws = np.random.default_rng([number, *node.encode()])
    return draws.integers(-8, 9, size).astype(np.float32)


def counted_in(row: Row) -> list[tuple[str, int]]:
    """Return the updates that a round counts, by node and the round of their work."""
    late = [(each["node"], each["round"]) for each in row.get("late", ())]
    return [(node, row["round"]) for node in row["contributors"]] + late


def parameters_after(initial: Any, rows: Sequence[Row], momentum: float = MOMENTUM) -> Any:
    """Return the parameters that the rounds lead to."""
    values, velocity = initial.copy(), np.zeros_like(initial)
    for row in rows:
        counted = counted_in(row)
        factors = [np.float32(4 / sqrt(1 + row["round"] - number)) for _, number in counted]
        updates = [update_of(node, number, len(values)) for node, number in counted]
        total = np.sum([f * u for f, u in zip(factors, updates, strict=True)], axis=0, dtype=np.float32)
        total *= np.float32(1.0 / (4 * len(counted)))
        velocity = velocity * np.float32(momentum) + total
        values = values + velocity
    return values


def faults_of(
    history: History,
    rows: Sequence[Row],
    rounds: int,
    initial: Any,
    final: Any,
    *,
    momentum: float = MOMENTUM,
    everyone: Sequence[str] = (),
) -> list[str]:
    """Return what the model does not allow.

    Args:
        history: What was seen.
        rows: Lines of rounds.jsonl at the end.
        rounds: Rounds of the run.
        initial: Parameters that it began with.
        final: Parameters of its result.
        momentum: Momentum of the server.
        everyone: Nodes that each round counts; empty = any.
    """
    faults = _order_of(history)
    numbers = [row["round"] for row in rows]
    if numbers != list(range(1, rounds + 1)):
        faults.append(f"rounds.jsonl has the rounds {numbers}")
        return faults
    where: dict[tuple[str, int], int] = {}
    for row in rows:
        for node, of in counted_in(row):
            if (node, of) in where:
                faults.append(f"round {row['round']} counts the update of {node} for round {of} again")
            where[node, of] = row["round"]
        if everyone and sorted(row["contributors"]) != sorted(everyone):
            faults.append(f"round {row['round']} did not wait for all nodes: {row['contributors']}")
    closed_by = {number: process for process, number in history.told}
    for process, node, number, accepted, due in history.orders:
        if accepted and (node, accepted) not in where and (not due or closed_by.get(due) == process):
            faults.append(f"process {process} told {node} that round {accepted} has its update, and it has not")
        if accepted >= number:
            faults.append(f"{node} got an order of round {number} when its update of round {accepted} was counted")
    for process, node, number, due in history.accepted:
        if closed_by.get(due) == process and where.get((node, number), rounds + 1) > due:
            faults.append(f"the update of {node} for round {number} was acknowledged, and is lost")
    expected = parameters_after(initial, rows, momentum)
    exact = all(not row.get("late") for row in rows)
    if not (np.array_equal(final, expected) if exact else np.allclose(final, expected, rtol=1e-5, atol=1e-4)):
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
