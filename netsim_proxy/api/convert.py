"""Conversion between the messages of the control API and the proxy's own types."""

from dataclasses import replace
from typing import Final

from hypergpu.common.clock import monotonic
from hypergpu.common.errors import InvalidInput
from hypergpu.common.rpc import check_node_id
from hypergpu.netsim_proxy.api.schedule import Entry, State
from hypergpu.netsim_proxy.config.bounds import MAX_LINKS
from hypergpu.netsim_proxy.link.access_lane import AccessLane, AccessLink, UpstreamBandwidth
from hypergpu.netsim_proxy.link.events import ALL, EventDirection, NetworkEvent
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, Direction
from hypergpu.netsim_proxy.relay.paced_link import PacedLink
from hypergpu.protos import netsim_pb2 as pb

_MAX_SUMMARY: Final = 200
_SHOWN_EVENTS: Final = 10
"""Events listed per link: with all of them, ten thousand links would not fit into a message."""


def event_from_proto(message: pb.Event) -> NetworkEvent:
    """Return the event that a message describes.

    Raises:
        InvalidInput: a type, mode or figure that cannot be; no target, or too many.
    """
    if len(message.nodes) + len(message.group_b) > MAX_LINKS:
        raise InvalidInput(f"an event names at most {MAX_LINKS} links")
    for name in (*message.nodes, *message.group_b):
        require_name(name)
    if not message.nodes and message.type != "recovery":
        raise InvalidInput(f'{message.type or "an event"} needs nodes: ids, or "{ALL}" for every link')
    return NetworkEvent(
        event_type=message.type,
        nodes=tuple(message.nodes),
        new_profile=message.profile,
        duration_seconds=message.duration_seconds,
        factor=message.factor,
        added_ms=message.added_ms,
        mode=message.mode,
        period_seconds=message.period_seconds,
        group_b=tuple(message.group_b),
        direction=message.direction or EventDirection.BOTH,
        limit_bytes=message.limit_bytes,
        close_after_seconds=message.close_after_seconds,
    )


def require_name(node_id: str) -> None:
    """Check the name of a link, or "*" for every link.

    Raises:
        InvalidInput: it is no node id.
    """
    if node_id != ALL:
        check_node_id(node_id)


def reply_to_proto(entry: Entry) -> pb.EventReply:
    """Return the id and the summary of an event."""
    return pb.EventReply(event_id=entry.event_id, summary=_shortened(entry.event.summary()))


def event_to_proto(event: NetworkEvent) -> pb.Event:
    """Return the message that describes an event."""
    nodes = event.nodes if event.target_node is None else (event.target_node, *event.nodes)
    return pb.Event(
        type=event.event_type,
        nodes=nodes,
        profile=event.new_profile,
        duration_seconds=event.duration_seconds,
        factor=event.factor,
        added_ms=event.added_ms,
        mode=event.mode,
        period_seconds=event.period_seconds,
        group_b=event.group_b,
        direction=event.direction,
        limit_bytes=event.limit_bytes,
        close_after_seconds=event.close_after_seconds,
    )


def entry_to_proto(entry: Entry) -> pb.ScheduledEvent:
    """Return the message for a scheduled, active or past event."""
    waits = entry.at is not None and entry.state == State.PLANNED
    return pb.ScheduledEvent(
        event_id=entry.event_id,
        event=event_to_proto(entry.event),
        in_seconds=max(0.0, (entry.at or 0.0) - monotonic()) if waits else 0.0,
        round=entry.round or 0,
        state=entry.state,
    )


def link_to_proto(paced: PacedLink) -> pb.LinkInfo:
    """Return the message for a link with its counters."""
    link, now = paced.link, monotonic()
    events = link.event_summaries(now)
    more = [f"and {len(events) - _SHOWN_EVENTS} more"] if len(events) > _SHOWN_EVENTS else []
    return pb.LinkInfo(
        node_id=paced.name,
        profile=link.profile.name,
        region=paced.region,
        loss_model=link.loss_model.value,
        state=link.state(now),
        up=_direction_to_proto(paced, UP),
        down=_direction_to_proto(paced, DOWN),
        rpcs=link.rpcs,
        rpcs_lost=link.rpcs_lost,
        active_events=[_shortened(event) for event in events[:_SHOWN_EVENTS]] + more,
        connections=len(paced.pairs),
    )


def upstream_to_proto(access: AccessLink) -> pb.UpstreamInfo:
    """Return the message for the upstream's access link."""
    bandwidth = access.bandwidth
    return pb.UpstreamInfo(
        up=_shared_lane_to_proto(access.up, bandwidth.up_mbit),
        down=_shared_lane_to_proto(access.down, bandwidth.down_mbit),
    )


def bandwidth_from_proto(request: pb.SetUpstreamBandwidthRequest, current: UpstreamBandwidth) -> UpstreamBandwidth:
    """Return the bandwidth that a message asks for.

    Raises:
        InvalidInput: it sets nothing, or a figure that cannot be.
    """
    changes = {field.name: value for field, value in request.ListFields()}
    if not changes:
        raise InvalidInput("SetUpstreamBandwidth needs down_mbit, up_mbit or queue_bytes")
    try:
        return replace(current, **changes)
    except ValueError as error:
        raise InvalidInput(f"upstream bandwidth: {error}") from error


def _shared_lane_to_proto(lane: AccessLane, mbit: float) -> pb.SharedLaneInfo:
    lane.advance(monotonic())
    return pb.SharedLaneInfo(
        bandwidth_mbit=mbit, queue_bytes=lane.waiting_bytes, queue_ms=1000 * lane.queue_seconds, bytes=lane.bytes
    )


def _direction_to_proto(paced: PacedLink, direction: Direction) -> pb.DirectionInfo:
    link, now = paced.link, monotonic()
    counters = link.counters(direction)
    path = link.profile.up if direction is UP else link.profile.down
    low, high = link.latency_bounds_ms(direction)
    return pb.DirectionInfo(
        bytes=counters.bytes,
        messages=counters.messages,
        mean_delay_ms=1000 * counters.delay_seconds / counters.messages if counters.messages else None,
        recent_delay_ms=1000 * counters.recent_seconds if counters.messages else None,
        queue_bytes=link.queued_bytes(now, direction),
        bandwidth_mbit=link.bandwidth_mbit(direction),
        latency_low_ms=low,
        latency_high_ms=high,
        loss=path.loss.mean,
    )


def _shortened(summary: str) -> str:
    return summary if len(summary) <= _MAX_SUMMARY else f"{summary[: _MAX_SUMMARY - 1]}…"
