"""Reports of failing parts."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from hypergpu.coordinator.health import STALLED_SECONDS, Health, Part


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_part_that_fails_is_news_once_and_counted_each_time() -> None:
    registry, changes = CollectorRegistry(), list[tuple[Part, str]]()
    health = Health(registry)
    health.on_change = lambda part, reason: changes.append((part, reason))
    label = {"part": "checkpoint"}
    assert registry.get_sample_value("hypergpu_degraded", label) == 0
    health.report(Part.CHECKPOINT, "")
    health.report(Part.CHECKPOINT, "the disk is full")
    health.report(Part.CHECKPOINT, "the disk is gone")
    assert health.problems == ["checkpoint: the disk is gone"]
    assert health.is_failing(Part.CHECKPOINT)
    assert not health.is_failing(Part.RECORDS)
    assert registry.get_sample_value("hypergpu_degraded", label) == 1
    assert registry.get_sample_value("hypergpu_part_failures_total", label) == 2
    health.reporter(Part.CHECKPOINT)("")
    assert health.problems == []
    assert registry.get_sample_value("hypergpu_degraded", label) == 0
    assert changes == [(Part.CHECKPOINT, "the disk is full"), (Part.CHECKPOINT, "")]


@pytest.mark.parametrize(("silent", "told"), [(STALLED_SECONDS, 0.0), (STALLED_SECONDS + 1, STALLED_SECONDS + 1)])
async def test_an_event_loop_that_does_not_run_is_noticed(silent: float, told: float) -> None:
    clock = Clock()
    health = Health(CollectorRegistry(), clock)
    clock.now += 1000
    assert health.stalled_seconds == 0, "it was never said to run"
    health.start_monitoring()
    clock.now += silent
    assert health.stalled_seconds == told
    health.stop_monitoring()
    assert health.stalled_seconds == 0
    await asyncio.sleep(0)
