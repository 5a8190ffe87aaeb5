from typing import Any

import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator, build_orchestrator
from hypergpu.coordinator.core.session import Register
from hypergpu.coordinator.link_telemetry import LinkTelemetry


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def orchestrator(clock: ManualClock) -> AdaptiveOrchestrator:
    return build_orchestrator(SystemConfig(), clock=clock)


def figures(links: LinkTelemetry) -> tuple[Any, ...]:
    known = links.describe("a")
    return known["quality"], known["score"], known["latency_ms"], known["loss_rate"]


def test_a_link_is_unknown_until_a_round_trip_was_measured(orchestrator: AdaptiveOrchestrator) -> None:
    links = LinkTelemetry(orchestrator)
    links.register(Register("a", "1", 0, {}, None))
    assert figures(links) == ("unknown", None, None, None)
    links.scraped("a", 20, 0)  # calls that succeeded, of unknown latency: 80 points that nobody measured
    assert figures(links) == ("unknown", None, None, None)
    orchestrator.monitor.record_communication("a", 2.0, True)
    assert figures(links) == ("excellent", 100.0, 2.0, 0.0)


def test_a_link_of_which_nothing_but_failures_is_known_is_bad_and_not_unknown(
    orchestrator: AdaptiveOrchestrator,
) -> None:
    links = LinkTelemetry(orchestrator)
    links.register(Register("a", "1", 0, {}, None))
    links.scraped("a", 2, 2)
    quality, score, latency_ms, loss_rate = figures(links)
    assert quality == "critical"
    assert score < 40
    assert (latency_ms, loss_rate) == (None, 1.0)


def test_the_link_of_a_node_that_has_no_more_to_say_stays_as_it_was(
    orchestrator: AdaptiveOrchestrator, clock: ManualClock
) -> None:
    links = LinkTelemetry(orchestrator)
    links.register(Register("a", "1", 0, {}, None))
    orchestrator.monitor.record_communication("a", 2.0, True)
    links.freeze("a")
    clock.advance(1e6)
    links.freeze("a")  # of silence, nothing is learnt
    assert figures(links) == ("excellent", 100.0, 2.0, 0.0)
    links.register(Register("a", "1", 0, {}, None))
    assert figures(links)[0] == "offline"


def test_a_link_that_was_never_measured_and_is_silent_for_long_is_offline(
    orchestrator: AdaptiveOrchestrator, clock: ManualClock
) -> None:
    links = LinkTelemetry(orchestrator)
    links.register(Register("a", "1", 0, {}, None))
    clock.advance(1e6)
    assert figures(links)[:2] == ("offline", 0.0)


def test_a_download_is_believed_if_it_fits_what_was_sent(
    orchestrator: AdaptiveOrchestrator, clock: ManualClock
) -> None:
    links = LinkTelemetry(orchestrator)
    links.register(Register("a", "1", 0, {}, None))
    links.begin_download("a", 0.0)
    links.sent("a", 3_000_000)
    links.downloaded("a", Transfer(2_000_000, 2.0, 1_000_000, 1.0), 2.9)
    assert links.rates() == {"a": {}}, "it took longer than the time since the sending began"
    links.begin_download("a", 0.0)
    links.sent("a", 3_000_000)
    links.downloaded("a", Transfer(2_000_000, 2.0, 1_000_000, 1.0), 3.0)
    links.uploaded("a", Transfer(2_000_000, 4.0, 1_000_000, 2.0))
    clock.advance(5.0)
    down = {"down_mbit": 8.0, "down_spread_mbit": 0.0, "down_least_mbit": 8.0, "down_age_seconds": 5.0}
    up = {"up_mbit": 4.0, "up_spread_mbit": 0.0, "up_least_mbit": 4.0, "up_age_seconds": 5.0}
    assert links.rates() == links.figures() == {"a": down | up}
    known = links.describe("a")
    assert {name: known[name] for name in down | up} == pytest.approx(down | up)
    links.freeze("a")
    clock.advance(1e6)
    assert links.rates() == {"a": down | up}


def test_totals_that_no_node_can_have_counted_are_ignored(orchestrator: AdaptiveOrchestrator) -> None:
    links = LinkTelemetry(orchestrator)
    links.register(Register("a", "1", 0, {}, None))
    links.observe_heartbeat("a", {"network": {"events": 10**400, "failures": 10**400}}, 2.0, loaded=False)
    assert figures(links) == ("excellent", 100.0, 2.0, 0.0)
