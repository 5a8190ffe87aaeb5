"""The monitor's figures of links of every kind, over time, as text.

Write them anew with `pytest tests/coordinator/core/links/test_transcripts.py --update-transcripts`.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import MonitorConfig
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from tests.transcripts import RequireTranscript

DIRECTORY = Path(__file__).parent / "transcripts"
LINKS = ("steady", "rising", "falling", "lossy", "silent", "failing", "reported", "recovering", "rounds", "unknown")


def shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.5g}"
    if isinstance(value, np.ndarray):
        return " ".join(shown(each) for each in value.tolist())
    if isinstance(value, list):
        return "[" + " ".join(shown(each) for each in value) + "]"
    return "-" if value is None else str(value)


def communicate(monitor: NetworkQualityMonitor, step: int) -> None:
    """What is seen of each link in one step."""
    noise = KeyedRandom(3, "links")

    def latency(place: int, usual: float) -> float:
        return usual * (0.9 + 0.2 * noise.uniform(100 * step + place))

    for at in range(3):
        monitor.record_communication("steady", latency(at, 12.0), True)
        monitor.record_communication("rising", latency(10 + at, 30.0 * 1.12**step), True)
        monitor.record_communication("falling", latency(20 + at, 400.0 * 0.9**step), True)
        monitor.record_communication("lossy", latency(30 + at, 80.0), noise.uniform(100 * step + 40 + at) > 0.12)
        if step < 4:
            monitor.record_communication("silent", latency(50 + at, 45.0), True)
        if step > 2:
            monitor.record_communication("failing", 900.0, False)
        monitor.record_communication("recovering", latency(60 + at, 25.0), not 5 <= step < 8)
    monitor.observe_counters("reported", attempts=7 * (step % 9), failures=step % 9 // 2, latency_ms=latency(70, 150.0))
    monitor.observe_counters("reported", attempts=40 * step, failures=3 * step, source="scrape")
    monitor.record_round_communication("steady", 0.03 if step < 9 else 0.4)
    monitor.record_round_communication("rising", 0.08 * 1.12**step)
    rows = monitor.rows(["rounds", "lossy", "failing"])
    success = np.array([step % 5 != 0, step % 4 != 1, False])
    monitor.record_rounds(rows, np.array([latency(80, 0.6), latency(81, 0.2), 3.0]), success, success)


def figures(monitor: NetworkQualityMonitor, step: int) -> Iterator[str]:
    records = [profile.to_dict() | {"measured": profile.measured} for profile in monitor.get_node_profiles(LINKS)]
    yield "  " + " ".join(records[0])
    yield from ("  " + " ".join(shown(value) for value in record.values()) for record in records)
    rows = monitor.rows(LINKS)
    yield f"  scores {shown(monitor.scores(rows))}; three ahead {shown(monitor.scores(rows, 3.0))}"
    yield f"  latencies {shown(monitor.latencies_ms(rows))}; two ahead {shown(monitor.latencies_ms(rows, 2.0))}"
    yield f"  grow in half an observation {shown(monitor.forecast_scale(rows, 0.5))}"
    yield f"  rounds {shown(monitor.rounds_measured(rows))}, failures {shown(monitor.failures_in_a_row(rows))}"
    if step % 4 == 0:
        for name, samples in zip(LINKS, monitor.round_communication_samples(rows, 6), strict=True):
            yield f"  next communications of {name}: {shown(samples)}"
        for name, samples in zip(LINKS, monitor.round_communication_samples(rows, 3, 2.0), strict=True):
            yield f"  two ahead of {name}: {shown(samples)}"


def story(config: MonitorConfig) -> Iterator[str]:
    clock = ManualClock()
    monitor = NetworkQualityMonitor(config=config, clock=clock)
    yield f"no links: {monitor.get_cluster_health_summary()}"
    for name in LINKS:
        monitor.register_node(name)
    for step in range(16):
        communicate(monitor, step)
        clock.advance(2.5)
        changes = {name: str(quality) for name, quality in monitor.update().items()}
        yield f"step {step}: {monitor.get_cluster_health_summary()}"
        yield f"  changed {changes}; the worst {monitor.get_problematic_nodes()}, best {monitor.get_reliable_nodes()}"
        for alert in monitor.get_alerts(include_closed=True):
            yield f"  {alert.severity.name} since {alert.opened_at:g} until {shown(alert.closed_at)}: {alert.message}"
        yield from figures(monitor, step)
    clock.advance(0.02)
    monitor.register_node("steady")
    yield f"again: {monitor.get_node_quality('steady')}, {shown(monitor.scores(monitor.rows(['steady', 'unknown'])))}"
    yield f"high: {[alert.message for alert in monitor.get_alerts('high')]}"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("defaults", MonitorConfig()),
        (
            "own",
            MonitorConfig(
                history=10,
                offline_after_failures=5,
                offline_after_seconds=12.0,
                hysteresis=0.5,
                best_latency_ms=20.0,
                worst_latency_ms=300.0,
                worst_loss=0.1,
            ),
        ),
    ],
)
def test_the_figures_of_links_are_as_written(
    name: str, config: MonitorConfig, require_transcript: RequireTranscript
) -> None:
    require_transcript(DIRECTORY / f"{name}.txt", story(config))
