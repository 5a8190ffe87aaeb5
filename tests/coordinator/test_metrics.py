import math

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from hypergpu.common.config import SystemConfig
from hypergpu.common.metric import MetricSpec
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.coordinator.metrics import Metrics


def test_what_alerts_watch_begins_at_zero() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    assert registry.get_sample_value("hypergpu_rounds_total", {"reason": "below_quorum"}) == 0
    assert registry.get_sample_value("hypergpu_updates_rejected_total", {"error": "NonFiniteUpdate"}) == 0
    assert registry.get_sample_value("hypergpu_work_returned_total", {"error": "NonFiniteUpdate"}) == 0


def test_a_gauge_is_absent_until_its_value_is_known_and_when_it_is_undefined() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, MetricSpec(name="r2"))

    def exported() -> dict[str, float | None]:
        labels = {"metric": {"metric": "r2"}}
        names = ("loss", "metric", "train_loss")
        return {name: registry.get_sample_value(f"hypergpu_{name}", labels.get(name, {})) for name in names}

    assert exported() == {"loss": None, "metric": None, "train_loss": None}
    metrics.evaluated(0.25, -0.5, {})
    assert exported() == {"loss": 0.25, "metric": -0.5, "train_loss": None}
    metrics.evaluated(0.0, None, {})
    assert exported() == {"loss": 0.0, "metric": None, "train_loss": None}
    metrics.evaluated(math.nan, 0.5, {})
    assert exported() == {"loss": None, "metric": 0.5, "train_loss": None}
    metrics.evaluated(0.5, 0.5, {"mae": 0.25, "f1": None})
    assert registry.get_sample_value("hypergpu_further_metric", {"metric": "mae"}) == 0.25
    metrics.evaluated(0.5, 0.5, {"mae": None, "f1": 0.75})
    assert registry.get_sample_value("hypergpu_further_metric", {"metric": "mae"}) is None
    assert registry.get_sample_value("hypergpu_further_metric", {"metric": "f1"}) == 0.75
    assert b"NaN" not in generate_latest(registry)


def test_nobody_can_invent_labels() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.returned("OutOfMemory")
    metrics.returned("anything at all")
    assert registry.get_sample_value("hypergpu_work_returned_total", {"error": "OutOfMemory"}) == 1
    assert registry.get_sample_value("hypergpu_work_returned_total", {"error": "other"}) == 1


def test_traffic_is_told_in_bytes() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.sent.inc(1_000)
    metrics.received.inc(7)
    metrics.received.inc(8)
    assert metrics.traffic() == {"bytes_sent": 1_000, "bytes_received": 15}


def test_the_summary_of_a_run_tells_policy_and_cost_of_adapting() -> None:
    orchestrator = build_orchestrator(SystemConfig())
    assert LinkTelemetry(orchestrator).summary() == {"policy": "reactive", "adaptation_share": None}
