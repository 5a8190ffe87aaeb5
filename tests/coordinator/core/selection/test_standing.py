"""The standing of nodes, by figures that are worked out by hand."""

import numpy as np
import pytest

from hypergpu.common.config import SelectorConfig
from hypergpu.coordinator.core.selection.contributions import Contributions
from hypergpu.coordinator.core.selection.quarantine import NodeState, QuarantineReason, QuarantineTracker


def standings(rows: int, **settings: object) -> QuarantineTracker:
    subject = QuarantineTracker(SelectorConfig.model_validate(settings))
    subject.grow(rows)
    return subject


def fail(subject: QuarantineTracker, *rows: int, at: int = 0, success: bool = False, late: bool = False) -> None:
    subject.outcomes(np.array(rows), np.full(len(rows), success), np.full(len(rows), late), at)


def test_changes_that_nobody_takes_are_bounded_and_the_latest_are_kept() -> None:
    subject = standings(10_010, quarantine_after_failures=1)
    fail(subject, *range(10_010))
    changes = subject.take_changes()
    assert (len(changes), changes[0].row, changes[-1].row) == (10_000, 10, 10_009)
    assert subject.take_changes() == []


def test_each_quarantine_in_a_row_is_twice_as_long_up_to_eight_times() -> None:
    subject = standings(2, quarantine_after_failures=2, quarantine_rounds=10, probation_successes=2)
    fail(subject, 0)
    assert subject.state(0) is NodeState.ACTIVE
    at, rounds = 0, []
    fail(subject, 0, at=at)
    for _ in range(5):
        left = int(subject.remaining_rounds(np.array([0]), at + 1)[0])
        rounds.append(left)
        subject.release_due(np.array([0, 1]), at + left)
        assert subject.state(0) is NodeState.QUARANTINED
        at += left + 1
        subject.release_due(np.array([0, 1]), at)
        assert subject.state(0) is NodeState.PROBATION
        fail(subject, 0, at=at)
    assert rounds == [10, 20, 40, 80, 80]
    at += 81
    subject.release_due(np.array([0]), at)
    fail(subject, 0, at=at, success=True)
    assert subject.state(0) is NodeState.PROBATION
    fail(subject, 0, at=at, success=True)
    assert subject.state(0) is NodeState.ACTIVE
    fail(subject, 0, at=at)
    fail(subject, 0, at=at)
    assert subject.remaining_rounds(np.array([0, 1]), at + 5).tolist() == [6, 0]


def test_two_late_updates_end_a_probation_like_one_failure() -> None:
    subject = standings(1, quarantine_after_failures=1, quarantine_rounds=1, probation_successes=3)
    fail(subject, 0)
    subject.release_due(np.array([0]), 2)
    fail(subject, 0, at=2, late=True)
    assert subject.state(0) is NodeState.PROBATION
    fail(subject, 0, at=3, success=True)
    fail(subject, 0, at=4, late=True)
    assert subject.state(0) is NodeState.PROBATION
    fail(subject, 0, at=5, late=True)
    assert subject.state(0) is NodeState.QUARANTINED
    assert subject.take_changes()[-1].reason is QuarantineReason.FAILED_ON_PROBATION


def test_of_nodes_that_are_all_quarantined_the_better_half_is_released() -> None:
    subject = standings(5, quarantine_after_failures=1, quarantine_rounds=10)
    rows = np.arange(5)
    fail(subject, 0, 1, 2, 3, 4)
    subject.release_due(np.array([1]), 11)
    fail(subject, 1, at=11)
    released = subject.release_least_bad(rows, np.array([1.0, 99.0, 5.0, 3.0, 4.0]), 4)
    assert released.tolist() == [2, 4]
    assert [subject.state(row) for row in (2, 4, 3)] == [*[NodeState.PROBATION] * 2, NodeState.QUARANTINED]
    told = subject.take_changes()[-1]
    assert told.figures == {"quarantined_nodes": 5, "strikes": 1, "remaining_rounds": 7, "node_score": 4.0}


def test_figures_of_contributions() -> None:
    subject = Contributions()
    subject.grow(4)
    rows, unknown = np.arange(3), np.nan
    subject.add(
        rows, np.array([2.0, 1.0, 4.0]), np.array([2.0, 3.0, 0.0]), np.array([True, False, True]), np.full(3, unknown)
    )
    subject.add(np.array([0]), np.array([1.0]), np.array([0.0]), np.array([True]), np.array([4.0]))
    assert subject.compute_seconds(np.arange(4)) == pytest.approx([2.8 / 1.9, 1.0, 4.0, 0.0])
    assert subject.efficiency(np.arange(4)) == pytest.approx([2.8 / 4.6, 0.25, 1.0, 1.0])
    assert subject.reliability(np.arange(4)) == pytest.approx([1.0, 0.0, 1.0, 1.0])
    assert subject.score(np.arange(4)) == pytest.approx([(2.8 / 4.6 + 1) / 2, 0.125, 1.0, 1.0])
    assert subject.counts[:4].tolist() == [[2, 2, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert subject.statistical_utility(np.array([1, 2])).tolist() == [1.0, 1.0]
    assert subject.statistical_utility(np.arange(3)).tolist() == [1.0, 1.0, 1.0]
    subject.add(rows[1:], np.ones(2), np.ones(2), np.array([True, True]), np.array([1.0, 10.0]))
    assert subject.statistical_utility(np.arange(4)) == pytest.approx([1.0, 0.5, 2.0, 1.0])
    subject.add(np.array([0]), np.ones(1), np.ones(1), np.array([True]), np.array([-1.0]))
    subject.add(np.array([0]), np.ones(1), np.ones(1), np.array([True]), np.array([3.0]))
    assert subject.statistical_utility(np.arange(2)) == pytest.approx([3.5 / 2.25, 0.5])
