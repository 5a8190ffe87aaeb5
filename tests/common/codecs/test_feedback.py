"""Life cycle of the residual: pending until the fate of its update is known."""

import numpy as np
import pytest

from hypergpu.common.codecs import ErrorFeedback, PayloadFormat, find_codec
from hypergpu.common.tensors import Flat


def values(*numbers: float) -> Flat:
    return np.array(numbers, np.float32)


def added(feedback: ErrorFeedback, round_number: int) -> list[float]:
    """What the residual adds to an update of zeros."""
    update = np.zeros(feedback.size + 1, np.float32)  # with one number of state
    feedback.add_to(update, round_number)
    assert update[-1] == 0.0
    return [float(number) for number in update[:-1]]


def staged(feedback: ErrorFeedback, round_number: int, *error: float) -> None:
    feedback.stage(round_number)[:] = error


def test_there_is_no_residual_at_first() -> None:
    feedback = ErrorFeedback(2)
    assert added(feedback, 1) == [0.0, 0.0]
    assert feedback.pending_round == 0
    feedback.commit()
    feedback.roll_back()
    assert added(feedback, 2) == [0.0, 0.0]


def test_a_committed_error_is_added_to_the_next_update() -> None:
    feedback = ErrorFeedback(2, decay=0.5)
    staged(feedback, 3, 4.0, -8.0)
    assert feedback.pending_round == 3
    assert added(feedback, 3) == [0.0, 0.0]
    feedback.commit()
    assert feedback.pending_round == 0
    assert added(feedback, 4) == [2.0, -4.0]


def test_the_residual_fades_with_each_round() -> None:
    feedback = ErrorFeedback(1, decay=0.5)
    staged(feedback, 3, 8.0)
    feedback.commit()
    assert added(feedback, 6) == [1.0]
    assert added(feedback, 3) == [4.0]  # a round that was opened again


def test_an_error_that_is_rolled_back_leaves_the_residual_before_it() -> None:
    feedback = ErrorFeedback(1, decay=0.5)
    staged(feedback, 1, 8.0)
    feedback.commit()
    staged(feedback, 2, 100.0)
    feedback.roll_back()
    assert feedback.pending_round == 0
    assert added(feedback, 2) == [4.0]
    assert added(feedback, 3) == [2.0]


def test_a_second_attempt_replaces_the_pending_error() -> None:
    feedback = ErrorFeedback(1, decay=0.5)
    staged(feedback, 1, 100.0)
    staged(feedback, 1, 8.0)
    feedback.commit()
    assert added(feedback, 2) == [4.0]


@pytest.mark.parametrize(("accepted_round", "expected"), [(7, [4.0]), (6, [0.0]), (8, [0.0]), (0, [0.0])])
def test_a_reply_that_was_lost_is_settled_by_the_last_accepted_round(
    accepted_round: int, expected: list[float]
) -> None:
    feedback = ErrorFeedback(1, decay=0.5)
    staged(feedback, 7, 8.0)
    feedback.settle(accepted_round)
    assert feedback.pending_round == 0
    assert added(feedback, 8) == expected


def test_settling_twice_changes_nothing() -> None:
    feedback = ErrorFeedback(1, decay=0.5)
    staged(feedback, 7, 8.0)
    feedback.settle(7)
    feedback.settle(7)
    feedback.settle(0)
    assert added(feedback, 8) == [4.0]


def test_a_large_residual_is_added_whole() -> None:
    size = (1 << 16) + 3
    feedback = ErrorFeedback(size, decay=1.0)
    error = np.arange(size, dtype=np.float32)
    feedback.stage(1)[:] = error
    feedback.commit()
    update = np.ones(size, np.float32)
    feedback.add_to(update, 2)
    np.testing.assert_array_equal(update, error + 1)


@pytest.mark.parametrize("name", ["int4", "topk"])
def test_with_feedback_nothing_is_lost_in_the_long_run(name: str) -> None:
    """The sum of what was decoded differs from the exact sum by the residual alone."""
    form = PayloadFormat(find_codec(name), 5000)
    feedback, rng = ErrorFeedback(form.size, decay=1.0), np.random.default_rng(1)
    exact, arrived, part = np.zeros(5000), np.zeros(5000), np.empty(5000, np.float32)
    for number in range(1, 101):
        update = (1.0 + rng.standard_normal(5000)).astype(np.float32)
        exact += update
        feedback.add_to(update, number)
        payload, _ = form.encode(update, error=feedback.stage(number))
        form.decode(payload, part)
        feedback.commit()
        arrived += part
    left = np.zeros(5000, np.float32)
    feedback.add_to(left, 101)
    np.testing.assert_allclose(arrived + left, exact, rtol=1e-3, atol=1e-3)
    assert np.linalg.norm(arrived - exact) < 0.8 * np.linalg.norm(exact)
