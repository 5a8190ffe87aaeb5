import math

import pytest

from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.coordinator.core.score import Score

MSE = MetricSpec(name="mse", better="lower")
R2 = MetricSpec(name="r2")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Score(1, 1.0, 0.2, MSE), Score(2, 1.0, 0.3, MSE)),
        (Score(1, 1.0, -0.2, R2), Score(2, 0.5, -0.3, R2)),
        (Score(1, 0.5, 0.2, MSE), Score(2, 1.0, 0.2, MSE)),
        (Score(1, 9.0, 99.0, MSE), Score(2, 1.0, None, MSE)),
        (Score(1, 0.5, 0.5, LOSS), Score(2, 1.0, 1.0, LOSS)),
        (Score(1, 0.5, None, R2), Score(2, 1.0, math.nan, R2)),
    ],
)
def test_the_better_model_follows_the_direction_of_the_metric(better: Score, worse: Score) -> None:
    assert better.beats(worse)
    assert not worse.beats(better)
    assert not better.beats(better)
