"""The control API's messages and the proxy's own types, one into the other."""

from common.clock import monotonic
from common.errors import InvalidInput
from netsim_proxy.link.events import ALL, NetworkEvent
from netsim_proxy.link.outcomes import Direction
from netsim_proxy.port import Port
from netsim_proxy.schedule import Entry, State
from protos import netsim_pb2 as pb


def event_from_proto(message: pb.Event) -> NetworkEvent:
    """The event that a message describes.

    Raises:
        InvalidInput: a type, mode or figure that cannot be; no target.
    """
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
    )


def event_to_proto(event: NetworkEvent) -> pb.Event:
    """The message that describes an event."""
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
    )


def entry_to_proto(entry: Entry) -> pb.ScheduledEvent:
    """An event to come, one that runs, or one that is over."""
    waits = entry.at is not None and entry.state == State.PLANNED
    return pb.ScheduledEvent(
        event_id=entry.event_id,
        event=event_to_proto(entry.event),
        in_seconds=max(0.0, (entry.at or 0.0) - monotonic()) if waits else 0.0,
        round=entry.round or 0,
        state=entry.state,
    )


def link_to_proto(port: Port) -> pb.LinkInfo:
    """A link with its counters."""
    link, now = port.link, monotonic()
    return pb.LinkInfo(
        node_id=port.name,
        profile=link.profile.name,
        region=port.region,
        loss_model=link.loss_model.value,
        state=link.state(now),
        up=_direction_to_proto(port, Direction.UP),
        down=_direction_to_proto(port, Direction.DOWN),
        rpcs=link.rpcs,
        rpcs_lost=link.rpcs_lost,
        active_events=[event.summary() for event in link.active_events(now)],
        connections=len(port.relays),
    )


def _direction_to_proto(port: Port, direction: Direction) -> pb.DirectionInfo:
    link, now = port.link, monotonic()
    counters = link.counters(direction)
    path = link.profile.up if direction is Direction.UP else link.profile.down
    low, high = link.latency_bounds_ms(direction)
    return pb.DirectionInfo(
        bytes=counters.bytes,
        messages=counters.messages,
        mean_delay_ms=1000 * counters.delay_seconds / counters.messages if counters.messages else 0.0,
        queue_bytes=link.queued_bytes(now, direction),
        bandwidth_mbit=link.bandwidth_mbit(direction),
        latency_low_ms=low,
        latency_high_ms=high,
        loss=path.loss.mean,
    )
