"""Events that can do nothing say so."""

import math
from typing import Any

import pytest

from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.effect import no_effect_reason
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.profiles import Path, Profile, find_profile

SLOW_UP = Profile("lopsided", Path(Uniform(0.1, 0.1), 10.0), Path(Uniform(0.0, 0.0), math.inf))


def event(kind: str, **fields: Any) -> NetworkEvent:
    return NetworkEvent(kind, target_node="node_1", **fields)


@pytest.mark.parametrize(
    ("what", "profile", "reason"),
    [
        (event("bandwidth_collapse", factor=0.1), find_profile("direct"), "the bandwidth of direct has no limit"),
        (event("bandwidth_collapse", factor=0.1), SLOW_UP, ""),
        (event("bandwidth_collapse", factor=0.1, direction="up"), SLOW_UP, ""),
        (event("bandwidth_collapse", direction="down"), SLOW_UP, "the bandwidth of lopsided has no limit"),
        (event("bandwidth_collapse", factor=1.0), SLOW_UP, "the factor is 1"),
        (event("latency_spike", factor=3.0), find_profile("direct"), "direct has no latency to multiply: set added_ms"),
        (event("latency_spike"), find_profile("direct"), "direct has no latency to multiply: set added_ms"),
        (event("latency_spike", added_ms=1.0), find_profile("direct"), ""),
        (event("latency_spike", factor=1.0), SLOW_UP, "the factor is 1, and added_ms is not set"),
        (
            event("latency_spike", factor=2.0, direction="down"),
            SLOW_UP,
            "lopsided has no latency to multiply: set added_ms",
        ),
        (event("latency_spike", factor=2.0), SLOW_UP, ""),
        (event("partition"), find_profile("direct"), ""),
    ],
)
def test_what_an_event_cannot_change(what: NetworkEvent, profile: Profile, reason: str) -> None:
    assert no_effect_reason(what, profile) == reason


def test_a_link_is_not_degraded_by_an_event_without_effect() -> None:
    link = Link("node_1", find_profile("direct"), 1)
    link.apply(event("bandwidth_collapse", factor=0.1), 0.0)
    assert link.state(1.0) == "up"
    (summary,) = link.event_summaries(1.0)
    assert summary.endswith("(no effect: the bandwidth of direct has no limit)")
    link.apply(event("latency_spike", added_ms=5.0), 1.0)
    assert link.state(1.0) == "degraded"
    assert not link.event_summaries(1.0)[1].endswith(")")
