"""Detection of events that have no effect on a link: half of an unlimited bandwidth is unlimited."""

import math

from hypergpu.netsim_proxy.link.events import EventDirection, EventType, NetworkEvent
from hypergpu.netsim_proxy.link.profiles import Path, Profile


def no_effect_reason(event: NetworkEvent, profile: Profile) -> str:
    """Return why an event changes nothing on a link of this profile; empty if it changes something."""
    paths = {
        EventDirection.UP: (profile.up,),
        EventDirection.DOWN: (profile.down,),
        EventDirection.BOTH: (profile.up, profile.down),
    }[EventDirection(event.direction)]
    if event.event_type == EventType.BANDWIDTH_COLLAPSE:
        if event.factor == 1:
            return "the factor is 1"
        if all(path.bandwidth_mbit == math.inf for path in paths):
            return f"the bandwidth of {profile.name} has no limit"
    if event.event_type == EventType.LATENCY_SPIKE and not event.added_ms:
        if event.factor == 1:
            return "the factor is 1, and added_ms is not set"
        if not any(map(_has_latency, paths)):
            return f"{profile.name} has no latency to multiply: set added_ms"
    return ""


def _has_latency(path: Path) -> bool:
    return path.latency.at(0.99) > 0
