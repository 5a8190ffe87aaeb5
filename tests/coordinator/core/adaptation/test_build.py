"""Construction of the adaptive stack from the configuration."""

from typing import Any

import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.core.links import ConnectionQuality


@pytest.mark.parametrize(
    ("server", "monitor", "offline_after"),
    [
        ({}, {}, 30.0),
        ({"heartbeat_seconds": 0.1}, {}, 30.0),
        ({"heartbeat_seconds": 60.0}, {}, 900.0),
        ({"heartbeat_seconds": 60.0}, {"offline_after_seconds": 100.0}, 100.0),
    ],
)
def test_links_are_not_offline_between_two_rare_heartbeats(
    server: dict[str, Any], monitor: dict[str, Any], offline_after: float
) -> None:
    clock = ManualClock()
    config = SystemConfig.model_validate({"server": server, "monitor": monitor})
    links = build_orchestrator(config, clock=clock).monitor
    links.register_node("a")
    links.record_communication("a", 20.0, True)
    clock.advance(offline_after - 0.01)
    assert links.get_node_quality("a") is not ConnectionQuality.OFFLINE
    clock.advance(0.02)
    assert links.get_node_quality("a") is ConnectionQuality.OFFLINE
