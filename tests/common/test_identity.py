"""What counts as the same task, and what is told where it is not."""

import dataclasses
import math
from typing import Any

import pytest

from hypergpu.common.errors import ProtocolError
from hypergpu.common.identity import Numbers, TaskIdentity, differences
from hypergpu.common.wire import identity_from_proto, identity_to_proto
from hypergpu.protos import coordinator_pb2 as pb

HERE = TaskIdentity(
    1437, 360, "ab" * 32, "cd" * 32, "ef" * 32, (Numbers("inputs", (1.0, -2.0, 0.0)), Numbers("loss", (0.7,)))
)


def changed(**fields: Any) -> TaskIdentity:
    return dataclasses.replace(HERE, **fields)


def test_the_same_is_the_same() -> None:
    assert differences(HERE, HERE) == []
    nan = changed(numbers=(Numbers("loss", (math.nan, math.inf)),))
    assert differences(nan, nan) == []


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (changed(train_samples=718), "1,437 train samples here, 718 there"),
        (changed(test_samples=361), "360 test samples here, 361 there"),
        (changed(train_digest="ef" * 32), "different types, shapes or classes of the train data: abab"),
        (changed(test_digest="ef" * 32), "different types, shapes or classes of the test data: cdcd"),
        (changed(model_digest="ab" * 32), "different model: efefefefefef here, abababababab there"),
        (changed(numbers=HERE.numbers[:1]), "loss is missing there"),
        (changed(numbers=(*HERE.numbers, Numbers("mask", ()))), "mask is missing here"),
        (changed(numbers=(HERE.numbers[0], Numbers("loss", (0.7, 0.7)))), "different loss: 1 numbers here, 2 there"),
        (changed(numbers=(HERE.numbers[0], Numbers("loss", (0.8,)))), "different loss: 0.7 here, 0.8 there"),
        (changed(numbers=(HERE.numbers[0], Numbers("loss", (math.nan,)))), "different loss: 0.7 here, nan there"),
    ],
)
def test_a_difference_is_told_with_both_figures(there: TaskIdentity, told: str) -> None:
    (found,) = differences(HERE, there)
    assert found.startswith(told)


@pytest.mark.parametrize(("value", "same"), [(1.009, True), (1.02, False), (-1.0, False), (0.99, True), (0.985, False)])
def test_rounding_is_no_difference(value: float, same: bool) -> None:
    here, there = (changed(numbers=(Numbers("x", (each,)),)) for each in (1.0, value))
    assert (differences(here, there) == []) is same


def test_small_numbers_are_held_against_the_largest_beside_them() -> None:
    here = changed(numbers=(Numbers("x", (100.0, 0.0)),))
    assert differences(here, changed(numbers=(Numbers("x", (100.0, 0.09)),))) == []
    assert differences(here, changed(numbers=(Numbers("x", (100.0, 0.2)),)))


def test_it_travels() -> None:
    assert identity_from_proto(identity_to_proto(HERE)) == HERE


@pytest.mark.parametrize(
    "message",
    [
        pb.TaskIdentity(numbers=[pb.IdentityNumbers()] * 1_001),
        pb.TaskIdentity(numbers=[pb.IdentityNumbers(values=[0.0] * 1_025)]),
        pb.TaskIdentity(numbers=[pb.IdentityNumbers(name="x" * 1_001)]),
        pb.TaskIdentity(train_digest="x" * 1_001),
        pb.TaskIdentity(test_digest="x" * 1_001),
        pb.TaskIdentity(model_digest="x" * 1_001),
    ],
)
def test_what_is_too_much_is_refused(message: pb.TaskIdentity) -> None:
    with pytest.raises(ProtocolError, match="a task identity has at most 1000 names"):
        identity_from_proto(message)
