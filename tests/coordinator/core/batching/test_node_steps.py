"""Local steps in proportion to the speed of a node."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.coordinator.core.batching.node_steps import LEAST_SHARE, NodeSteps, steps_by_speed

TIMES = st.lists(st.tuples(st.floats(1e-4, 10.0), st.floats(0.0, 100.0)), min_size=1, max_size=12)


@given(TIMES, st.integers(2, 500))
def test_no_node_takes_longer_than_the_fastest_but_for_its_least_steps(
    times: list[tuple[float, float]], local_steps: int
) -> None:
    step, waiting = np.array(times).T
    steps, seconds = steps_by_speed(step, waiting, local_steps)
    least = math.ceil(max(2.0, LEAST_SHARE * local_steps))
    assert (steps >= least).all()
    assert (steps <= local_steps).all()
    fastest = (waiting + local_steps * step).min()
    assert seconds == fastest
    taken = waiting + steps * step
    assert ((steps == least) | (taken <= fastest + 0.5 * step + 1e-9)).all()
    assert steps[(waiting + local_steps * step).argmin()] == local_steps


@pytest.mark.parametrize(
    ("step", "waiting", "expected"),
    [
        ([0.1, 0.2, 0.125], [0.0, 0.0, 0.0], [40, 20, 32]),
        ([0.1, 0.1, 0.1], [1.0, 3.0, 1.0], [40, 20, 40]),
        ([0.1, 10.0, 0.1], [0.0, 0.0, 900.0], [40, 10, 10]),
    ],
)
def test_slow_computing_and_slow_transfers_leave_fewer_steps(
    step: list[float], waiting: list[float], expected: list[int]
) -> None:
    assert steps_by_speed(np.array(step), np.array(waiting), 40)[0].tolist() == expected


def test_two_steps_are_the_least_since_one_sends_a_gradient() -> None:
    assert steps_by_speed(np.array([0.1, 9.0]), np.zeros(2), 4)[0].tolist() == [4, 2]


def test_only_a_change_beyond_the_noise_of_measurements_is_made() -> None:
    own, nodes, still = NodeSteps(), ["fast", "slow"], np.zeros(2)
    (first,) = own.choose(nodes, np.array([0.1, 0.2]), still, 40)
    assert (first.node_id, first.old, first.new, first.fastest_seconds) == ("slow", 40, 20, 4.0)
    assert not own.choose(nodes, np.array([0.1, 0.22]), still, 40)
    assert own.of(nodes, 40) == {"slow": 20}
    (back,) = own.choose(nodes, np.array([0.1, 0.1]), still, 40)
    assert (back.old, back.new) == (20, 40)
    assert own.of(nodes, 40) == {}
