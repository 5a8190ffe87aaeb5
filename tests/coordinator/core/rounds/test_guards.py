"""Which models are kept, which are left, and which errors end a run."""

import math

import pytest

from hypergpu.coordinator.core.rounds.events import AbandonRound
from hypergpu.coordinator.core.rounds.guards import MAX_LOSS, MAX_RISE, ModelGuard, SharedFaults


def kept(*losses: float) -> list[bool]:
    guard, answers = ModelGuard(0), []
    for number, loss in enumerate(losses, 1):
        answers.append(guard.judge(loss))
        if answers[-1]:
            guard.keep(number, loss, None)
    return answers


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((MAX_LOSS,), [True]),
        ((math.nextafter(MAX_LOSS, math.inf),), [False]),
        ((math.nan, math.inf, -math.inf), [False] * 3),
        ((0.5, MAX_RISE), [True, True]),
        ((0.5, math.nextafter(MAX_RISE, math.inf)), [True, False]),
        ((7.0, 7.0 * MAX_RISE), [True, True]),
        ((7.0, 7.001 * MAX_RISE, 7.0 * MAX_RISE), [True, False, True]),
        ((-5.0, -4.0, MAX_RISE), [True] * 3),
    ],
)
def test_a_loss_that_is_none_or_has_exploded_is_not_kept(losses: tuple[float, ...], expected: list[bool]) -> None:
    assert kept(*losses) == expected


def test_the_model_to_return_to_is_the_last_one_that_was_kept() -> None:
    guard = ModelGuard(0)
    assert guard.kept_text == "the initial parameters"
    assert guard.judge(0.5)
    guard.keep(6, 0.5, 0.9)
    assert guard.judge(0.7), "a model may be used and not kept"
    assert not guard.judge(math.inf)
    assert (guard.kept_round, guard.kept_text) == (6, "the parameters after round 6")
    assert guard.kept_figures == (0.5, 0.9)


def test_three_in_a_row_are_a_divergence() -> None:
    guard = ModelGuard(0)
    for loss in (math.nan, math.nan, 0.5, math.nan, math.nan):
        guard.judge(loss)
        assert guard.divergence == ""
    guard.judge(math.nan)
    assert "in 3 evaluations in a row; try a lower training.learning_rate" in guard.divergence


FAILED = "every node failed with the same error in round 7, 3 times in a row: "


def abandoned(fault: str, detail: str = "") -> AbandonRound:
    return AbandonRound(7, "nobody is left", fault, detail)


def test_three_rounds_given_up_for_one_error_are_enough() -> None:
    faults = SharedFaults()
    assert [faults.on_abandoned(abandoned("A")) for _ in range(2)] == ["", ""]
    assert faults.on_abandoned(abandoned("A", "why")) == FAILED + "A: why"


@pytest.mark.parametrize("between", ["B", "", None])
def test_another_error_or_a_closed_round_starts_the_count_anew(between: str | None) -> None:
    faults = SharedFaults()
    for _ in range(2):
        faults.on_abandoned(abandoned("A"))
    if between is None:
        faults.on_closed()
    else:
        assert faults.on_abandoned(abandoned(between)) == ""
    assert [faults.on_abandoned(abandoned("A")) for _ in range(2)] == ["", ""]
    assert faults.on_abandoned(abandoned("A")) == FAILED + "A"


def test_rounds_that_nobody_answered_are_no_error_of_all() -> None:
    faults = SharedFaults()
    assert [faults.on_abandoned(abandoned("")) for _ in range(9)] == [""] * 9
