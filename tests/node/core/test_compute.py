import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import InvalidInput
from hypergpu.common.step_times import StepTimes
from hypergpu.node.core.compute import ComputeModel, Lateness, fitted
from hypergpu.node.core.gpu import PRESETS

cards = st.sampled_from(sorted(PRESETS))
times = st.floats(1e-7, 100.0)


measured = st.builds(StepTimes, st.floats(0, 100), times)


@given(cards, cards, measured, st.tuples(st.integers(0, 1000), st.integers(1, 10_000)), st.floats(0, 1))
def test_step_times_keep_the_order_of_the_specs(
    one: str, other: str, measured: StepTimes, step: tuple[int, int], spread: float
) -> None:
    def seconds(card: str) -> float:
        model = ComputeModel(
            PRESETS[card],
            seconds_per_step=measured.seconds_per_step,
            seconds_per_sample=measured.seconds_per_sample,
            spread=spread,
            node_id="n",
        )
        return model.step_seconds(*step, now=0.0)

    faster = PRESETS[one].tflops > PRESETS[other].tflops
    assert (seconds(one) < seconds(other)) == faster
    assert seconds(one) * PRESETS[one].tflops == pytest.approx(seconds(other) * PRESETS[other].tflops)


@given(st.integers(1, 1000), times, st.integers(1, 1000), times)
def test_any_two_timings_give_steps_that_cost_more_for_more_samples(
    few: int, few_seconds: float, more: int, many_seconds: float
) -> None:
    found, plausible = fitted(few, few_seconds, few + more, many_seconds)
    assert found.seconds_per_step >= 0
    assert found.seconds_per_sample > 0
    assert plausible == (many_seconds > few_seconds)


def test_two_timings_make_a_line() -> None:
    found, plausible = fitted(2, 0.012, 16, 0.026)
    assert (found.seconds_per_step, found.seconds_per_sample) == pytest.approx((0.010, 0.001))
    assert plausible


@pytest.mark.parametrize(("many", "many_seconds"), [(16, 0.010), (16, 0.008), (2, 0.010)])
def test_timings_that_do_not_grow_leave_a_sample_a_hundredth_of_its_share(many: int, many_seconds: float) -> None:
    found, plausible = fitted(2, 0.010, many, many_seconds)
    assert not plausible
    assert found.seconds_per_sample == pytest.approx(many_seconds / many / 100)
    assert found.seconds_per_step == pytest.approx(0.010 - 2 * found.seconds_per_sample)


def test_a_step_that_costs_nothing_beside_its_samples() -> None:
    found, _ = fitted(2, 0.001, 16, 0.016)
    assert found.seconds_per_step == 0
    assert found.seconds_per_sample == pytest.approx(0.015 / 14)


@pytest.mark.parametrize("values", [(-1e-9, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, math.nan)])
def test_step_times_that_cannot_be(values: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput, match="step times must be above 0"):
        StepTimes(*values)


@pytest.mark.parametrize("name", ["seconds_per_step", "seconds_per_sample", "spread"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_card_takes_times_that_are_finite_and_not_negative(name: str, value: float) -> None:
    values: Any = {"seconds_per_step": 1.0, "seconds_per_sample": 1.0} | {name: value}
    with pytest.raises(InvalidInput, match="finite and not negative"):
        ComputeModel(PRESETS["T4"], **values)


def test_lateness_is_told_once_and_not_for_a_single_slow_step() -> None:
    lateness = Lateness()
    for real in (3.4, 1.0, 1.0, 1.0, 1.0):  # 7.4 of 5 seconds: the first step loads libraries
        assert lateness.add(real, 1.0) is None
    for _ in range(4):
        assert lateness.add(1.5, 1.0) is None
    assert lateness.add(1.5, 1.0) is None, "at the ratio, not above it"
    assert lateness.add(1.75, 1.0) == (1.55, 1.0)
    assert lateness.add(100.0, 1.0) is None


def test_lateness_waits_for_a_full_window() -> None:
    lateness = Lateness()
    assert [lateness.add(9.0, 1.0) for _ in range(5)] == [None, None, None, None, (9.0, 1.0)]
