"""Identity of a task's data and model, compared when a node joins: every machine of a run needs the same.

Counts, types and classes are compared exactly. Computed numbers, such as normalised inputs or frozen layers, may differ
in their last digits from one kind of processor to the next, so a sample of them is compared within a tolerance.
Resuming a run compares exactly instead, on one machine: see `hypergpu.tasks.fingerprint`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RELATIVE_TOLERANCE = 1e-2
"""Relative difference of two numbers that counts as rounding: float32 and TF32 differ by a thousandth."""
ABSOLUTE_TOLERANCE = 1e-3
"""Difference that counts as rounding, relative to the largest number of the same sample."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A sample of numbers, such as some inputs of the training data."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TaskIdentity:
    """Figures that identify a task's data and model."""

    train_samples: int
    test_samples: int
    train_digest: str
    """SHA-256 of types, shapes and classes of the training data, in hexadecimal digits."""
    test_digest: str
    model_digest: str
    """SHA-256 of the model's `repr`: layers and settings such as the rate of a dropout."""
    numbers: tuple[Numbers, ...]


ADVICE = (
    "Every machine needs the same code and the same data. The order of a set, or numbers from an unseeded generator, "
    "differ between processes"
)


def differences(here: TaskIdentity, there: TaskIdentity) -> list[str]:
    """Return the differences beyond rounding in words, each with both figures."""
    found = []
    for what in ("train_samples", "test_samples"):
        mine, theirs = getattr(here, what), getattr(there, what)
        if mine != theirs:
            found.append(f"{mine:,} {what.replace('_', ' ')} here, {theirs:,} there")
    for what in ("train", "test"):
        mine, theirs = getattr(here, f"{what}_digest"), getattr(there, f"{what}_digest")
        if mine != theirs:
            found.append(
                f"different types, shapes or classes of the {what} data: {mine[:12]} here, {theirs[:12]} there"
            )
    if here.model_digest != there.model_digest:
        found.append(f"different model: {here.model_digest[:12]} here, {there.model_digest[:12]} there")
    own = {numbers.name: numbers.values for numbers in here.numbers}
    others = {numbers.name: numbers.values for numbers in there.numbers}
    for name in sorted(own.keys() | others.keys()):
        if name not in own or name not in others:
            found.append(f"{name} {'is missing there' if name in own else 'is missing here'}")
            continue
        difference = _first_difference(own[name], others[name])
        if difference:
            found.append(f"different {name}: {difference}")
    return found


def _first_difference(here: Sequence[float], there: Sequence[float]) -> str:
    if len(here) != len(there):
        return f"{len(here)} numbers here, {len(there)} there"
    largest = max((abs(value) for value in (*here, *there) if math.isfinite(value)), default=0.0)
    for mine, theirs in zip(here, there, strict=True):
        if mine == theirs or (math.isnan(mine) and math.isnan(theirs)):
            continue
        if not abs(mine - theirs) <= RELATIVE_TOLERANCE * max(abs(mine), abs(theirs)) + ABSOLUTE_TOLERANCE * largest:
            return f"{mine:.6g} here, {theirs:.6g} there"
    return ""
