import json
import math
from typing import Any

import numpy as np
import pytest

from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.statistics import mann_kendall, summary, theil_sen, trend
from hypergpu.node.core.anomalies import drift, spike
from hypergpu.node.core.metrics_collector import MetricsCollector, Record

NOISE = [KeyedRandom(0, "noise").normal(i) for i in range(200)]


def _steady(collector: MetricsCollector, count: int = 30, start: int = 0) -> None:
    for i in range(start, start + count):
        collector.record_training_step(i, 1 + 0.02 * NOISE[i], 2 + 0.02 * NOISE[i + 1], 0.1 + 0.001 * NOISE[i + 2])
        collector.record_network_event(50 + NOISE[i], True)


def test_the_calls_of_the_specification() -> None:
    collector = MetricsCollector("node_0", history_size=100)
    collector.record_training_step(1, 2.3, 1.5, 0.05)
    collector.record_training_step(2, 2.2, 1.4, 0.06, accuracy=0.2, forward_time=0.02, backward_time=0.03, samples=64)
    collector.record_network_event(latency_ms=80.0, success=True, retries=1)
    collector.record_network_event(latency_ms=500.0, success=False, retries=2)
    collector.record_resource_usage(gpu_util=80.0, memory_mb=2048.0)
    training, network = collector.get_training_summary(), collector.get_network_summary()
    assert training["loss"]["mean"] == pytest.approx(2.25)
    assert training["total_steps"] == 2
    assert training["accuracy"]["count"] == 1
    assert network["reliability"] == 0.5
    assert network["latency_ms"]["mean"] == 80.0  # of those that succeeded
    assert network["total_retries"] == 3
    assert collector.get_contribution_metrics()["success_rate"] == 0.5
    assert collector.detect_anomalies() == []
    assert collector.get_full_report()["node_id"] == "node_0"


def test_history_rolls_and_totals_count_all() -> None:
    collector = MetricsCollector("n", history_size=10)
    _steady(collector, 25)
    summary_ = collector.get_training_summary()
    assert (summary_["loss"]["count"], summary_["total_steps"]) == (10, 25)
    with pytest.raises(InvalidInput, match="history_size"):
        MetricsCollector("n", history_size=0)


def test_an_empty_collector_reports_too() -> None:
    report = MetricsCollector("n").get_full_report()
    assert report["steps"] == 0
    assert report["anomalies"] == []
    assert report["network"]["success_rate"] == 1.0


@pytest.mark.parametrize("name", ["n", "é", "\n", "😀"])
def test_the_compact_report_stays_under_a_kibibyte_whatever_it_holds(name: str) -> None:
    collector = MetricsCollector(name * 500)
    _steady(collector, 60)
    for i in range(40):
        collector.record_training_step(
            i, -1.23456e-123 if i % 2 else 1e300, 9.87654e250, 1234567.891, 0.123456, 1e9, 1e9
        )
        collector.record_network_event(123456.789, i % 3 == 0, retries=10**9)
        collector.record_resource_usage(99.99999, 1e12)
        collector.record_work(1e12, 1e12, False)
    collector.record_training_step(99, math.nan, math.inf, 1.0)
    encoded = collector.encode_report()
    assert len(encoded) < 1024
    assert "non_finite" in json.loads(encoded)["anomalies"]


def test_every_record_reaches_the_sink() -> None:
    seen: list[Record] = []
    collector = MetricsCollector("n", sink=seen.append)
    collector.record_training_step(1, 1.0, 1.0, 1.0)
    collector.record_network_event(None, False)
    collector.record_resource_usage(1.0, 1.0)
    collector.record_work(1.0, 2.0, True)
    assert [type(record).__name__ for record in seen] == ["TrainingStep", "NetworkEvent", "ResourceUsage", "WorkDone"]


def test_contribution_weighs_compute_and_waiting() -> None:
    collector = MetricsCollector("n")
    collector.record_work(3.0, 1.0, True)
    collector.record_work(3.0, 5.0, False)
    contribution = collector.get_contribution_metrics()
    assert (contribution["efficiency"], contribution["success_rate"]) == (0.5, 0.5)


def test_a_healthy_node_has_no_anomalies() -> None:
    collector = MetricsCollector("n")
    _steady(collector, 100)
    assert collector.detect_anomalies() == []


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("loss_spike", lambda c: c.record_training_step(99, 9.0, 2.0, 0.1)),
        ("grad_norm_spike", lambda c: c.record_training_step(99, 1.0, 40.0, 0.1)),
        ("step_time_spike", lambda c: c.record_training_step(99, 1.0, 2.0, 1.0)),
        ("latency_spike", lambda c: c.record_network_event(400.0, True)),
        ("non_finite", lambda c: c.record_training_step(99, math.nan, 2.0, 0.1)),
    ],
)
def test_each_anomaly_has_its_kind_figure_and_threshold(kind: str, record: "object") -> None:
    collector = MetricsCollector("n")
    _steady(collector, 40)
    record(collector)  # type: ignore[operator]  # a lambda of the parameters above
    found = {anomaly.kind: anomaly for anomaly in collector.detect_anomalies()}
    assert set(found) == {kind}
    assert kind == "non_finite" or found[kind].figure > found[kind].threshold > 0


def test_a_slow_rise_is_a_drift_and_many_failures_are_packet_loss() -> None:
    collector = MetricsCollector("n", history_size=60)
    for i in range(60):
        collector.record_network_event(50 + NOISE[i] + max(0, i - 30), i % 3 > 0)
    kinds = {anomaly.kind for anomaly in collector.detect_anomalies()}
    assert kinds == {"latency_drift", "packet_loss"}


def test_trends_survive_outliers_that_mislead_two_means() -> None:
    falling = [10 - 0.1 * i + 0.3 * NOISE[i] for i in range(50)]
    falling[-3] = 500.0  # the mean of the second half is now far above that of the first
    assert trend(falling, less_is_better=True) == "improving"
    assert trend(falling, less_is_better=False) == "degrading"
    assert theil_sen(falling) == pytest.approx(-0.1, rel=0.2)
    assert trend(NOISE[:50], less_is_better=True) == "stable"


def test_mann_kendall_against_a_worked_example() -> None:
    # Without ties, n = 5, S = 10: variance 5·4·15/18 = 16.67, Z = 9 / 4.08.
    assert mann_kendall([1, 2, 3, 4, 5]) == pytest.approx(9 / math.sqrt(50 / 3))
    assert mann_kendall([5, 4, 3, 2, 1]) == pytest.approx(-9 / math.sqrt(50 / 3))
    assert mann_kendall([1, 1, 1, 1, 1]) == 0.0


def test_statistics_of_next_to_nothing() -> None:
    assert summary([]) == {"count": 0}
    assert summary([math.nan, 3.0])["median"] == 3.0
    assert (theil_sen([]), theil_sen([1.0]), mann_kendall([1, 2])) == (0.0, 0.0, 0.0)
    assert spike("s", [1.0, 100.0]) is None
    assert drift("d", [0.0] * 30) is None


def test_quantiles_are_those_of_numpy() -> None:
    values = NOISE[:101]
    assert summary(values)["p95"] == pytest.approx(float(np.quantile(values, 0.95)))


@pytest.mark.parametrize("shape", ["normal", "exponential", "lognormal", "uniform"])
def test_noise_of_any_shape_is_hardly_ever_an_anomaly(shape: str) -> None:
    generator = np.random.default_rng(0)
    noise = {
        "normal": generator.normal(10, 2, (300, 100)),
        "exponential": generator.exponential(1, (300, 100)),
        "lognormal": generator.lognormal(0, 0.3, (300, 100)),
        "uniform": generator.uniform(50, 150, (300, 100)),
    }[shape]
    found = sum((spike("s", x) is not None) + (drift("d", x) is not None) for x in noise.tolist())
    assert found <= (10 if shape == "exponential" else 3)


@pytest.mark.parametrize("later", [0, 3])
def test_an_anomaly_is_still_told_some_records_later(later: int) -> None:
    collector = MetricsCollector("n")
    _steady(collector, 60)
    collector.record_training_step(60, math.nan, 2.0, 0.1)
    collector.record_network_event(400.0, True)
    _steady(collector, later, start=61)
    assert {anomaly.kind for anomaly in collector.detect_anomalies()} == {"non_finite", "latency_spike"}
    _steady(collector, 20, start=70)
    assert collector.detect_anomalies() == []


def test_a_long_history_costs_no_more_and_says_the_same() -> None:
    falling = [10 - 0.001 * i + 0.3 * NOISE[i % 200] for i in range(10_000)]
    assert theil_sen(falling) == pytest.approx(-0.001, rel=0.05)
    assert trend(falling, less_is_better=True) == "improving"
    assert spike("s", [1.0] * 9_999 + [3.0]) is not None


@pytest.mark.parametrize(
    "record",
    [
        lambda c: c.record_training_step(1, None, 1.0, 1.0),
        lambda c: c.record_training_step(1, "low", 1.0, 1.0),
        lambda c: c.record_training_step(1, 1.0, 1.0, -1.0),
        lambda c: c.record_training_step(1, 1.0, 1.0, 1.0, samples=-1),
        lambda c: c.record_training_step(1.5, 1.0, 1.0, 1.0),
        lambda c: c.record_network_event(-1.0, True),
        lambda c: c.record_network_event(1.0, True, retries=-1),
        lambda c: c.record_network_event(1.0, True, retries=None),
        lambda c: c.record_resource_usage("all", 1.0),
        lambda c: c.record_work(1.0, -1.0, True),
    ],
)
def test_what_is_no_measurement_is_refused_and_leaves_no_trace(record: Any) -> None:
    collector = MetricsCollector("n")
    before = collector.get_full_report()
    with pytest.raises(InvalidInput):
        record(collector)
    assert collector.get_full_report() == before


def test_what_was_not_measured_spoils_no_total() -> None:
    collector = MetricsCollector("n")
    collector.record_training_step(1, 1.0, 1.0, 2.0)
    collector.record_training_step(2, 1.0, 1.0, math.nan)
    collector.record_network_event(math.inf, True)
    collector.record_resource_usage(None, None)
    assert collector.get_contribution_metrics()["compute_time"] == 2.0
    assert collector.get_network_summary()["latency_ms"] == {"count": 0}
    assert collector.get_resource_summary()["gpu_util"] == {"count": 0}
