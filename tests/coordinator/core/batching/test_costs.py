"""The fitted cost of a step against nodes whose costs are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.step_times import StepTimes
from hypergpu.coordinator.core.batching.costs import ComputeCosts

ROW = np.array([0])
TIMES = StepTimes(0.01, 0.0001)  # 100 samples take as long as the fixed part


def costs(*batches: int, announced: StepTimes | None = None, factor: float = 1.0) -> ComputeCosts:
    """Return the costs of one node, after a step on each of the batches that takes `factor` times TIMES."""
    found = ComputeCosts()
    found.grow(1)
    if announced is not None:
        found.announce(0, announced)
    for batch in batches:
        found.observe(ROW, np.array([float(batch)]), np.array([factor * TIMES.seconds(batch)]))
    return found


def expected(found: ComputeCosts, batch: int) -> float:
    """Return the expected time of a step on so many samples."""
    return float(found.fit(ROW).seconds(np.array([batch]))[0])


def test_without_more_knowledge_larger_batches_cost_in_proportion_and_smaller_ones_save_half() -> None:
    found = costs(64)
    assert expected(found, 128) == pytest.approx(2 * TIMES.seconds(64))
    assert expected(found, 32) == pytest.approx(0.75 * TIMES.seconds(64))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_what_a_node_announces_tells_the_fixed_part_whatever_the_optimizer_adds(factor: float) -> None:
    found = costs(64, announced=TIMES, factor=factor)
    for batch in (16, 64, 256):
        assert expected(found, batch) == pytest.approx(factor * TIMES.seconds(batch))


def test_measured_sizes_correct_a_wrong_announcement() -> None:
    found = costs(64, 96, announced=StepTimes(1.0, 1e-9))
    assert expected(found, 256) == pytest.approx(TIMES.seconds(256))


def test_a_proportion_is_kept_when_the_batches_that_showed_it_are_long_ago() -> None:
    found = costs(64, *[128] * 200)
    for batch in (32, 64, 256):
        assert expected(found, batch) == pytest.approx(TIMES.seconds(batch), rel=0.01)


def test_an_announcement_does_not_undo_what_was_measured() -> None:
    found = costs(64, 128, *[128] * 200)
    found.announce(0, StepTimes(1.0, 1e-9))
    assert expected(found, 256) == pytest.approx(TIMES.seconds(256), rel=0.01)


@given(st.floats(0, 1e6), st.floats(1e-9, 1e6), st.integers(1, 4096), st.floats(1e-6, 1e3))
def test_no_announcement_changes_the_time_of_the_batch_that_was_measured(
    fixed: float, per_sample: float, batch: int, seconds: float
) -> None:
    found = costs(announced=StepTimes(fixed, per_sample))
    found.observe(ROW, np.array([float(batch)]), np.array([seconds]))
    assert expected(found, batch) == pytest.approx(seconds)
    assert 0 < expected(found, 2 * batch) <= 2 * seconds * (1 + 1e-9)
