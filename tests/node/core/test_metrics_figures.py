"""Every figure of the metrics collector, worked out by hand for a short history."""

import math

import numpy as np
import pytest

from hypergpu.common.statistics import mann_kendall, summary, theil_sen, trend
from hypergpu.node.core.anomalies import drift, spike
from hypergpu.node.core.metrics_collector import MetricsCollector


def collector() -> MetricsCollector:
    """Four steps, ten calls, two readings of the card and three units of work."""
    metrics = MetricsCollector("node_1")
    for step, (loss, seconds) in enumerate([(2.0, 0.1), (1.5, 0.3), (1.25, 0.2), (1.0, 0.4)]):
        metrics.record_training_step(step, loss, 4.0 - step, seconds, 0.25 * step, seconds / 4, seconds / 2, 10 + step)
    for number in range(10):
        metrics.record_network_event(10.0 * number, success=number != 9, retries=number % 3)
    metrics.record_resource_usage(50.0, 1000.0)
    metrics.record_resource_usage(70.0, None)
    metrics.record_work(3.0, 1.0, success=True)
    metrics.record_work(1.0, 2.0, success=True)
    metrics.record_work(2.0, 3.0, success=False)
    return metrics


def test_training() -> None:
    found = collector().get_training_summary()
    assert (found["total_steps"], found["total_samples"]) == (4, 46)
    assert found["samples_per_second"] == pytest.approx(46 / 1.0)
    assert found["loss_slope"] == pytest.approx(np.median([-0.5, -0.375, -1 / 3, -0.25, -0.25, -0.25]))
    assert {name: found[name]["mean"] for name in ("loss", "accuracy", "grad_norm", "step_time")} == pytest.approx(
        {"loss": 1.4375, "accuracy": 0.375, "grad_norm": 2.5, "step_time": 0.25}
    )
    assert found["forward_time"]["last"] == pytest.approx(0.1)
    assert found["backward_time"]["last"] == pytest.approx(0.2)


def test_network() -> None:
    found = collector().get_network_summary()
    assert (found["total_events"], found["total_failures"], found["total_retries"]) == (10, 1, 9)
    assert (found["reliability"], found["loss_rate"]) == pytest.approx((0.9, 0.1))
    assert found["latency_ms"]["count"] == 9, "of the calls that succeeded"
    assert found["latency_ms"]["mean"] == pytest.approx(40.0)
    assert found["latency_slope_ms"] == pytest.approx(10.0)
    assert found["trend"] == "degrading"


def test_resources_and_contribution() -> None:
    metrics = collector()
    resources = metrics.get_resource_summary()
    assert (resources["gpu_util"]["mean"], resources["memory_mb"]["count"]) == (60.0, 1)
    assert metrics.get_contribution_metrics() == pytest.approx(
        {
            "compute_time": 1.0,
            "waiting_time": 6.0,
            "efficiency": 0.5,
            "success_rate": 2 / 3,
            "attempts": 3,
            "successes": 2,
            "total_steps": 4,
            "total_samples": 46,
        }
    )


def test_without_units_of_work_calls_are_the_attempts() -> None:
    metrics = MetricsCollector("node_1")
    assert metrics.get_contribution_metrics() == {
        "compute_time": 0.0,
        "waiting_time": 0.0,
        "efficiency": 1.0,
        "success_rate": 1.0,
        "attempts": 0,
        "successes": 0,
        "total_steps": 0,
        "total_samples": 0,
    }
    for success in (True, False, True, True):
        metrics.record_network_event(1.0, success)
    found = metrics.get_contribution_metrics()
    assert (found["attempts"], found["successes"], found["success_rate"]) == (4, 3, 0.75)


def test_the_report() -> None:
    assert collector().get_full_report() == {
        "node_id": "node_1",
        "steps": 4,
        "samples": 46,
        "training": {"loss": 1.0, "accuracy": 0.75, "grad_norm": 1.0, "trend": "stable"},
        "performance": {
            "step_time": 0.25,
            "forward_time": 0.0625,
            "backward_time": 0.125,
            "samples_per_second": 46.0,
        },
        "network": {
            "latency_ms": 40.0,
            "latency_p95_ms": 76.0,
            "success_rate": 0.9,
            "loss_rate": 0.1,
            "events": 10,
            "failures": 1,
            "retries": 9,
            "trend": "degrading",
        },
        "resources": {"gpu_util": 70.0, "memory_mb": 1000.0},
        "contribution": {"compute_time": 1.0, "efficiency": 0.5, "success_rate": 0.6667},
        "anomalies": [],
    }


@pytest.mark.parametrize(("calls", "lost", "told"), [(9, 9, False), (10, 2, False), (10, 3, True), (20, 5, True)])
def test_packet_loss_is_told_from_ten_calls_on_above_a_fifth(calls: int, lost: int, told: bool) -> None:
    metrics = MetricsCollector("node_1")
    for number in range(calls):
        metrics.record_network_event(10.0, success=number >= lost)
    found = [anomaly for anomaly in metrics.detect_anomalies() if anomaly.kind == "packet_loss"]
    assert [(anomaly.figure, anomaly.threshold) for anomaly in found] == ([(lost / calls, 0.2)] if told else [])


@pytest.mark.parametrize(("bad_step", "told"), [(8, False), (9, True)])
def test_a_loss_that_is_not_finite_is_told_while_it_is_among_the_latest_tenth(bad_step: int, told: bool) -> None:
    metrics = MetricsCollector("node_1")
    for step in range(10):
        metrics.record_training_step(step, math.nan if step == bad_step else 1.0, 1.0, 0.1)
    kinds = [anomaly.kind for anomaly in metrics.detect_anomalies()]
    assert kinds == (["non_finite"] if told else [])


def test_summary_of_known_values() -> None:
    found = summary([1.0, 2.0, math.nan, 3.0, 4.0, math.inf])
    assert found == pytest.approx(
        {
            "count": 4,
            "mean": 2.5,
            "std": math.sqrt(1.25),
            "min": 1.0,
            "max": 4.0,
            "median": 2.5,
            "p95": 3.85,
            "p99": 3.97,
            "last": 4.0,
        }
    )
    assert summary([math.nan]) == {"count": 0}


def test_slopes_and_scores_of_known_series() -> None:
    assert theil_sen([]) == theil_sen([5.0]) == 0.0
    assert theil_sen([5.0, 7.0]) == 2.0
    assert theil_sen([0.0, 1.0, 2.0, 30.0]) == pytest.approx(np.median([1, 1, 1, 29, 28, 10]))
    # n = 5, S = 10, variance = 5·4·15 / 18
    assert mann_kendall([1, 2, 3, 4, 5]) == pytest.approx(9 / math.sqrt(5 * 4 * 15 / 18))
    assert mann_kendall([5, 4, 3, 2, 1]) == pytest.approx(-9 / math.sqrt(5 * 4 * 15 / 18))
    # a tie of two among four: S = 5, variance = (4·3·13 - 2·1·9) / 18
    assert mann_kendall([1, 2, 2, 3]) == pytest.approx(4 / math.sqrt((4 * 3 * 13 - 2 * 9) / 18))
    assert mann_kendall([2, 2, 2]) == 0.0


def test_a_trend_is_told_at_its_significance_and_by_its_direction() -> None:
    rising = [1.0, 2.0, 3.0, 4.0, 5.0]  # a score of 2.2
    assert trend(rising, less_is_better=True) == "degrading"
    assert trend(rising, less_is_better=False) == "improving"
    assert trend(rising[::-1], less_is_better=True) == "improving"
    assert trend(rising[:4], less_is_better=True) == "stable", "four values in order score 1.7"
    score = mann_kendall(rising)
    assert trend(rising, less_is_better=True, significance=score) == "degrading"
    assert trend(rising, less_is_better=True, significance=np.nextafter(score, 9)) == "stable"


def test_a_spike_stands_six_deviations_above_the_median() -> None:
    past = [9.0, 10.0, 11.0, 9.0, 10.0, 11.0, 9.0, 10.0, 11.0, 10.0]
    threshold = 10.0 + 6.0 * (1.0 * 1.4826)
    assert spike("x", [*past, threshold - 1e-9]) is None
    found = spike("x", [*past, threshold + 1e-6])
    assert found is not None
    assert (found.kind, found.figure) == ("x", threshold + 1e-6)
    assert found.threshold == pytest.approx(threshold)
    assert spike("x", [*past[1:], 1000.0]) is None, "nine values are no history"


def test_a_series_that_hardly_varies_has_a_deviation_of_a_twentieth() -> None:
    assert spike("x", [100.0] * 10 + [130.0]) is None
    assert spike("x", [100.0] * 10 + [130.1]) is not None


def test_a_drift_is_told_where_the_moving_average_leaves_the_level() -> None:
    level = [10.0, 12.0] * 5  # median 11, deviation 1 * 1.4826, mean 11
    deviation = 1 * 1.4826
    threshold = 11.0 + 5.0 * deviation * math.sqrt(0.2 / 1.8)

    def average(value: float) -> float:
        mean = 11.0
        for _ in range(10):
            mean += 0.2 * (value - mean)
        return mean

    below, above = (threshold - 11.0) / (1 - 0.8**10), (threshold - 11.0) / (1 - 0.8**10)
    assert drift("x", [*level, *[11.0 + below - 0.01] * 10]) is None
    found = drift("x", [*level, *[11.0 + above + 0.01] * 10])
    assert found is not None
    assert found.threshold == pytest.approx(threshold)
    assert found.figure == pytest.approx(average(11.0 + above + 0.01))
    assert drift("x", [*level[1:], *[20.0] * 10]) is None, "nineteen values are no history"
