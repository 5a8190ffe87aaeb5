"""Which models are kept, which are left, and which errors end a run."""

import math

import pytest

from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.events import AbandonRound, KeepModel, RevertModel
from hypergpu.coordinator.core.rounds.guards import LARGEST_LOSS, LARGEST_RISE, ModelGuard, SharedFaults


def kept(*losses: float) -> list[bool]:
    guard = ModelGuard(0, EffectBuffer(1))
    return [guard.judge(number, loss) for number, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((LARGEST_LOSS,), [True]),
        ((math.nextafter(LARGEST_LOSS, math.inf),), [False]),
        ((math.nan, math.inf, -math.inf), [False] * 3),
        ((0.5, LARGEST_RISE), [True, True]),
        ((0.5, math.nextafter(LARGEST_RISE, math.inf)), [True, False]),
        ((7.0, 7.0 * LARGEST_RISE), [True, True]),
        ((7.0, 7.001 * LARGEST_RISE, 7.0 * LARGEST_RISE), [True, False, True]),
        ((-5.0, -4.0, LARGEST_RISE), [True] * 3),
    ],
)
def test_a_loss_that_is_none_or_has_exploded_is_not_kept(losses: tuple[float, ...], expected: list[bool]) -> None:
    assert kept(*losses) == expected


def test_effects_say_what_to_do_with_the_model() -> None:
    buffer = EffectBuffer(1)
    guard = ModelGuard(4, buffer)
    for number, loss in ((5, math.nan), (6, 0.5), (7, math.inf)):
        guard.judge(number, loss)
    effects = [effect for effect in buffer.drain() if isinstance(effect, (KeepModel, RevertModel))]
    assert effects == [RevertModel(5), KeepModel(6), RevertModel(7)]


def test_three_in_a_row_are_a_divergence() -> None:
    guard = ModelGuard(0, EffectBuffer(1))
    for number, loss in enumerate((math.nan, math.nan, 0.5, math.nan, math.nan), 1):
        guard.judge(number, loss)
        assert guard.divergence == ""
    guard.judge(6, math.nan)
    assert "in 3 evaluations in a row; try a lower training.learning_rate" in guard.divergence


def abandoned(fault: str, detail: str = "") -> AbandonRound:
    return AbandonRound(7, "nobody is left", fault, detail)


def test_three_rounds_given_up_for_one_error_are_enough() -> None:
    faults = SharedFaults()
    assert [faults.abandoned(abandoned("A")) for _ in range(2)] == ["", ""]
    assert faults.abandoned(abandoned("A", "why")) == "every node gave round 7 up, 3 times in a row: A: why"


@pytest.mark.parametrize("between", ["B", "", None])
def test_another_error_or_a_closed_round_starts_the_count_anew(between: str | None) -> None:
    faults = SharedFaults()
    for _ in range(2):
        faults.abandoned(abandoned("A"))
    if between is None:
        faults.closed()
    else:
        assert faults.abandoned(abandoned(between)) == ""
    assert [faults.abandoned(abandoned("A")) for _ in range(2)] == ["", ""]
    assert faults.abandoned(abandoned("A")) == "every node gave round 7 up, 3 times in a row: A"


def test_rounds_that_nobody_answered_are_no_error_of_all() -> None:
    faults = SharedFaults()
    assert [faults.abandoned(abandoned("")) for _ in range(9)] == [""] * 9
