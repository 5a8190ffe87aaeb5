import math

import pytest
from pydantic import ValidationError

from hypergpu.common.metric import ACCURACY, LOSS, RESERVED, MetricSpec, finite
from hypergpu.common.text import figure
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.run_records import round_row

MSE = MetricSpec(name="mse", better="lower")
R2 = MetricSpec(name="r2")


@pytest.mark.parametrize(
    ("metric", "value", "target", "reached"),
    [
        (R2, 0.5, 0.5, True),
        (R2, 0.499, 0.5, False),
        (R2, -0.2, -0.3, True),
        (MSE, 0.5, 0.5, True),
        (MSE, 0.501, 0.5, False),
        (MSE, 0.0, 0.5, True),
        (R2, None, -1e9, False),
        (MSE, None, 1e9, False),
        (R2, 0.0, 0.0, True),
    ],
)
def test_a_target_is_reached_from_the_side_that_the_direction_says(
    metric: MetricSpec, value: float | None, target: float, reached: bool
) -> None:
    assert metric.reached(value, target) is reached


def test_best_and_worst_follow_the_direction_and_pass_over_what_is_undefined() -> None:
    values = [None, -3.0, 2.0, None]
    assert (R2.best(values), R2.worst(values)) == (2.0, -3.0)
    assert (MSE.best(values), MSE.worst(values)) == (-3.0, 2.0)
    assert R2.best([None]) is None
    assert MSE.worst([]) is None
    assert (R2.gain(3.0, over=1.0), MSE.gain(3.0, over=1.0)) == (2.0, -2.0)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (ACCURACY, 0.9514, "95.1 %"),
        (ACCURACY, None, "–"),
        (R2, 0.461, "0.461"),
        (R2, -0.4213, "-0.4213"),
        (MetricSpec(name="perplexity", better="lower"), 12345.6, "12,346"),
        (MetricSpec(name="error", better="lower", unit="ms"), 12.5, "12.5 ms"),
        (MetricSpec(name="error", better="lower", unit="ms"), None, "–"),
    ],
)
def test_a_value_is_written_as_its_format_says(metric: MetricSpec, value: float | None, text: str) -> None:
    assert metric.text(value) == text
    assert metric.label(value) == f"{metric.name} {text}"


@pytest.mark.parametrize("name", ["", " ", "a<b", "a>=1", "line\nbreak", "x" * 41])
def test_a_name_that_a_table_or_a_threshold_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        MetricSpec(name=name)
    assert MetricSpec(name="x" * 40).name == "x" * 40


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, True, "1", 10**400])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert finite(value) is None
    assert finite(-2) == -2.0


def test_numbers_have_four_digits() -> None:
    assert [figure(v) for v in (0.0, 1e-5, 999.96, 1000.4, None)] == ["0", "1e-05", "1000", "1,000", "–"]


def test_a_metric_cannot_take_the_name_of_a_key_of_a_round() -> None:
    closed = ev.CloseRound(
        round=1,
        reason=ev.CloseReason.ALL_CONTRIBUTED,
        seconds=1.0,
        contributions=(),
        loss=0.1,
        samples=1,
        evaluate=True,
    )
    assert round_row(closed, 0.1, R2, 0.5, 1.0, traffic={}).keys() - {"r2"} <= RESERVED
    assert round_row(closed, 0.1, LOSS, 0.1, 1.0, traffic={})["loss"] == 0.1
