import math
import shutil
import subprocess
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, disable_created_metrics, enable_created_metrics
from prometheus_client.exposition import generate_latest

from hypergpu.common.errors import ConfigError
from hypergpu.common.http import Answer, HttpServer, metrics
from hypergpu.node.core.gpu import PRESETS
from hypergpu.node.core.metrics_collector import MetricsCollector
from hypergpu.node.core.states import State
from hypergpu.node.metrics import NodeMetrics


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    series = NodeMetrics(registry, "n1", PRESETS["T4"])
    collector = MetricsCollector("n1", sink=series.record)
    collector.record_training_step(1, 2.0, 1.5, 0.3, accuracy=0.5, forward_time=0.1, backward_time=0.15, samples=64)
    collector.record_training_step(2, math.nan, 1.5, 0.2, samples=64)
    collector.record_network_event(80.0, True)
    collector.record_network_event(None, True)
    collector.record_network_event(None, False, retries=1)
    collector.record_resource_usage(50.0, 100.0)
    collector.record_work(2.0, 1.0, True)
    series.work("accepted")
    series.state(State.TRAINING)
    series.traffic(1000, 2000)
    return registry


def test_records_become_series(registry: CollectorRegistry) -> None:
    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"hypergpu_node_{name}", labels)

    assert value("steps_total") == 2
    assert value("samples_total") == 128
    assert value("compute_seconds_total") == pytest.approx(0.5)
    assert value("rpcs_total", outcome="success") == 2
    assert value("rpcs_total", outcome="failure") == 1
    assert value("rpc_retries_total") == 1
    assert value("rpc_round_trip_seconds_sum") == pytest.approx(0.08)
    assert value("rpc_round_trip_seconds_count") == 1
    assert value("gpu_utilization_ratio") == 0.5
    assert value("memory_bytes") == 100 << 20
    assert value("work_total", outcome="accepted") == 1
    assert value("state", state="training") == 1
    assert value("state", state="joining") == 0
    assert value("sent_bytes_total") == 1000
    assert value("info", node_id="n1", gpu="T4", simulated="true") == 1
    # A figure that was not measured is no observation.
    assert value("forward_seconds_count") == 1
    assert value("forward_seconds_sum") == pytest.approx(0.1)


def test_a_gauge_is_absent_until_it_is_known() -> None:
    registry = CollectorRegistry()
    series = NodeMetrics(registry, "n1", PRESETS["T4"])
    collector = MetricsCollector("n1", sink=series.record)
    names = ("loss", "metric", "gradient_norm", "gpu_utilization_ratio", "memory_bytes")

    def known() -> list[str]:
        return [name for name in names if registry.get_sample_value(f"hypergpu_node_{name}") is not None]

    assert known() == []
    collector.record_training_step(1, 0.0, 1.5, 0.3)
    assert known() == ["loss", "gradient_norm"]
    collector.record_training_step(2, 0.5, 1.5, 0.3, accuracy=-0.25)
    collector.record_resource_usage(None, 0.0)
    assert known() == ["loss", "metric", "gradient_norm", "memory_bytes"]
    assert registry.get_sample_value("hypergpu_node_metric") == -0.25
    collector.record_training_step(3, math.nan, 1.5, 0.3)
    assert known() == ["gradient_norm", "memory_bytes"]
    assert b"NaN" not in generate_latest(registry)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say(registry: CollectorRegistry) -> None:
    disable_created_metrics()
    try:
        text = generate_latest(registry)
    finally:
        enable_created_metrics()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_http_server_answers_its_paths_alone(registry: CollectorRegistry) -> None:
    server = HttpServer(
        "127.0.0.1:0", {"/metrics": metrics(registry), "/healthz": lambda: Answer(b"ill\n", status=503)}
    )
    try:
        with urlopen(f"http://{server.address}/metrics?x=1") as reply:
            assert b"hypergpu_node_steps_total 2.0" in reply.read()
        for path, status in (("/healthz", 503), ("/etc/passwd", 404)):
            with pytest.raises(HTTPError) as caught:
                urlopen(f"http://{server.address}{path}")
            assert caught.value.code == status
            caught.value.close()
        with pytest.raises(ConfigError, match="choose another"):
            HttpServer(server.address, {})
    finally:
        server.close()
