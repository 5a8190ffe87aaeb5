"""Link models as a library: simulated communications over named links, without waiting in real time."""

import math
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from hypergpu.common.clock import Clock, monotonic, wall
from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.event_queue import EventQueue
from hypergpu.netsim_proxy.link.events import ALL, UPSTREAM, EventType, NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Blocked, Cause, Direction, Fail, LossModel
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.regions import between_regions, find_region

Message = TypeVar("Message")

_GIVE_UP_SECONDS: Final = 5.0
"""Time after which a caller gives up on a silent link."""
_SPIKE_FACTOR: Final = 5.0
_BACKOFF_SECONDS: Final = (0.1, 10.0)
"""Wait before the first retry, and the longest wait."""
_OF_CONNECTIONS: Final = (EventType.LIMIT_TIME, EventType.SLOW_CLOSE)
_WALL_TIME: Final = 1e9
"""Smallest time read as seconds since the epoch: 31 years, longer than any monotonic clock has run."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Profile of a node's last mile, and the region of the node ("" = none)."""

    profile: Profile
    region: str = ""


@dataclass(slots=True)
class _Tally:
    communications: int = 0
    failures: int = 0
    retries: int = 0
    latency_sum_ms: float = 0.0
    latency_min_ms: float = math.inf
    latency_max_ms: float = 0.0


class NetworkSimulator:
    """Simulate communications between nodes and a coordinator over imperfect links.

    Each node has one link with a profile: latency, bandwidth and loss. Calls return at once with the latency that the
    communication would have had; nothing sleeps. Draws are keyed by seed and node, so that results repeat. Events
    begin and end by `clock`, which a simulated communication does not advance.

    Args:
        default_profile: profile of nodes without one of their own; a name or a `Profile`.
        seed: seed of all random draws.
        clock: current time in seconds; a monotonic clock by default.
        loss_model: `rpc` fails a communication that is lost, `transport` delays it as TCP would.
        congestion_control: `cubic`, `reno` or `bbr` (`transport` only), where the profile names none.
        upstream_region: region of the coordinator; distances of node regions are measured to it.

    Raises:
        UnknownName: no such profile or region; the message names the nearest.
    """

    def __init__(
        self,
        default_profile: str | Profile = "average",
        *,
        seed: int = 0,
        clock: Clock = monotonic,
        loss_model: LossModel | str = LossModel.RPC,
        congestion_control: CongestionControl | str = CongestionControl.CUBIC,
        upstream_region: str = "us-east",
    ) -> None:
        self._default = _as_profile(default_profile)
        self._upstream_region = find_region(upstream_region)
        self._places: dict[str, _Place] = {}
        self._seed = seed
        self._clock = clock
        self._began = clock()
        self._loss_model = LossModel(loss_model)
        self._control = CongestionControl(congestion_control)
        self._links: dict[str, Link] = {}
        self._tallies: dict[str, _Tally] = {}
        self._event_queue = EventQueue()
        self._for_all: list[tuple[float, NetworkEvent]] = []

    def set_node_profile(self, node_id: str, profile: str | Profile, region: str | None = None) -> None:
        """Set the profile of a node's link, and optionally its region.

        Args:
            node_id: ID of the node; an unknown node is added.
            profile: name of a profile, or a `Profile`.
            region: region of the node, such as eu-west. The round trip from there to `upstream_region` is added to
                the latency of the profile. None keeps the current region; "" removes it.

        Raises:
            UnknownName: no such profile or region; the message names the nearest.
        """
        place = self._places.get(node_id, _Place(self._default))
        self._move(node_id, _Place(_as_profile(profile), place.region if region is None else region))

    def set_node_region(self, node_id: str, region: str) -> None:
        """Set the region of a node; "" removes it.

        The round trip from there to `upstream_region` is added to the latency of the node's profile. `regions.py` names
        the source of the round trips. A `profile_change` event keeps this distance.

        Raises:
            UnknownName: no such region; the message names the nearest.
        """
        self._move(node_id, _Place(self._places.get(node_id, _Place(self._default)).profile, region))

    def simulate_communication(self, node_id: str, message: Message) -> tuple[bool, float, Message | None]:
        """Simulate one round trip that carries `message` to the coordinator.

        Returns:
            Success, latency in milliseconds (on failure, the time until the caller notices), and the message, or None
            on failure.
        """
        now = self._advance()
        success, seconds = _round_trip(self._link(node_id), now, _size_of(message))
        tally = self._tallies[node_id]
        tally.communications += 1
        tally.failures += not success
        if success:
            tally.latency_sum_ms += seconds * 1000
            tally.latency_min_ms = min(tally.latency_min_ms, seconds * 1000)
            tally.latency_max_ms = max(tally.latency_max_ms, seconds * 1000)
        return success, seconds * 1000, message if success else None

    def simulate_with_retry(
        self, node_id: str, message: Message, max_retries: int = 3
    ) -> tuple[bool, float, Message | None, int]:
        """Simulate a round trip, retried up to `max_retries` times with exponential backoff and jitter.

        Returns:
            Success, total latency in milliseconds of all attempts and waits, the message or None on failure, and the
            number of attempts.

        Raises:
            ValueError: `max_retries` is negative.
        """
        total = 0.0
        waits = KeyedRandom(self._seed, node_id, "backoff")
        for attempt in range(max_retries + 1):
            success, latency, reply = self.simulate_communication(node_id, message)
            total += latency
            if success or attempt == max_retries:
                return success, total, reply, attempt + 1
            tally = self._tallies[node_id]
            tally.retries += 1
            first, longest = _BACKOFF_SECONDS
            total += 1000 * min(longest, first * 2**attempt) * (0.5 + waits.uniform(tally.retries) / 2)
        raise ValueError(f"max_retries must be 0 or more, not {max_retries}")

    def inject_latency_spike(self, node_id: str, duration_seconds: float = 5.0, factor: float = _SPIKE_FACTOR) -> None:
        """Multiply a node's latencies by `factor` for `duration_seconds` from now; 0 = until a recovery."""
        self._apply(
            NetworkEvent(EventType.LATENCY_SPIKE, node_id, duration_seconds=duration_seconds, factor=factor),
            self._advance(),
        )

    def inject_event(self, event: NetworkEvent) -> None:
        """Start an event now, ignoring its scheduled time or round.

        Raises:
            InvalidInput: `limit_time` or `slow_close`, which have no effect on single communications.
            UnknownName: the new profile of a `profile_change` does not exist.
        """
        _require_effect(event)
        self._apply(event, self._advance())

    def schedule_event(self, event: NetworkEvent) -> None:
        """Schedule an event for its `scheduled_time` or `scheduled_round`; an event with neither starts now.

        `scheduled_time` may be a time of the simulator's clock or seconds since the epoch. A time before the simulator
        was created is relative to its creation: 5.0 means five seconds after it.

        Raises:
            InvalidInput: `limit_time` or `slow_close`, which have no effect on single communications.
            UnknownName: the new profile of a `profile_change` does not exist.
        """
        _require_effect(event)
        if event.new_profile:
            find_profile(event.new_profile)
        at = event.scheduled_time
        if at is None:
            at = self._clock()
        elif at >= _WALL_TIME > self._clock():
            at += self._clock() - wall()
        elif at < self._began:
            at += self._began
        self._event_queue.add(event if event.scheduled_round is not None else replace(event, scheduled_time=at))

    def announce_round(self, number: int) -> None:
        """Start the events scheduled for training rounds up to `number`."""
        now = self._advance()
        for event in self._event_queue.due_in_round(number):
            self._apply(event, now)

    def get_node_metrics(self, node_id: str) -> dict[str, Any]:
        """Return the state and counters of a node's link. Latencies cover successful communications only."""
        now = self._advance()
        link = self._link(node_id)
        tally = self._tallies[node_id]
        done = tally.communications - tally.failures
        return {
            "node_id": node_id,
            "profile": link.profile.name,
            "region": self._places[node_id].region if node_id in self._places else "",
            "state": link.state(now),
            "communications": tally.communications,
            "failures": tally.failures,
            "retries": tally.retries,
            "success_rate": done / tally.communications if tally.communications else 1.0,
            "packet_loss": tally.failures / tally.communications if tally.communications else 0.0,
            "mean_latency_ms": tally.latency_sum_ms / done if done else 0.0,
            "min_latency_ms": tally.latency_min_ms if done else 0.0,
            "max_latency_ms": tally.latency_max_ms,
            "bytes_up": link.counters(Direction.UP).bytes,
            "bytes_down": link.counters(Direction.DOWN).bytes,
            "active_events": [event.summary() for event in link.active_events(now)],
        }

    def _move(self, node_id: str, place: "_Place") -> None:
        profile = place.profile
        if place.region:
            profile = between_regions(place.region, self._upstream_region, profile)
        self._link(node_id).set_profile(profile, self._clock())
        self._places[node_id] = place

    def _link(self, node_id: str) -> Link:
        link = self._links.get(node_id)
        if link is None:
            link = Link(
                node_id,
                self._default,
                self._seed,
                loss_model=self._loss_model,
                congestion_control=self._control,
            )
            self._links[node_id] = link
            self._tallies[node_id] = _Tally()
            for at, event in self._for_all:
                if event.concerns(node_id):
                    link.apply(event, at)
        return link

    def _advance(self) -> float:
        now = self._clock()
        if now >= self._event_queue.next_at:
            for at, event in self._event_queue.due(now):
                self._apply(event, at)
        return now

    def _apply(self, event: NetworkEvent, at: float) -> None:
        targets = event.targets
        if ALL in targets:
            if event.event_type == EventType.RECOVERY:
                self._for_all.clear()
            else:
                self._for_all.append((at, event))
            concerned = [node_id for node_id in self._links if event.concerns(node_id)]
        else:
            concerned = [node_id for node_id in targets if node_id != UPSTREAM]
        for node_id in concerned:
            self._link(node_id).apply(event, at)


def _round_trip(link: Link, now: float, nbytes: int) -> tuple[bool, float]:
    """Return success and seconds of one round trip on an idle link, with events as they are at `now`."""
    link.settle()
    rpc = link.begin(now)
    seconds = 0.0
    for direction, size in ((Direction.UP, nbytes), (Direction.DOWN, 1)):
        outcome = link.offer(now, direction, size, rpc, end=True)
        if isinstance(outcome, Blocked):
            link.disconnect(rpc.connection)
            return False, _GIVE_UP_SECONDS
        seconds += outcome.at - now
        if isinstance(outcome, Fail):
            if outcome.cause is not Cause.LOSS:
                link.disconnect(rpc.connection)  # the next one connects anew
            return False, seconds
    return True, seconds


def _require_effect(event: NetworkEvent) -> None:
    if event.event_type in _OF_CONNECTIONS:
        raise InvalidInput(
            f"{event.event_type} has no effect in NetworkSimulator: it acts on the end of connections, and only single "
            "communications are simulated; use the proxy instead"
        )


def _size_of(message: object) -> int:
    """Return the size of a message in bytes: that of bytes and arrays, or of `str(message)` in UTF-8."""
    size = getattr(message, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(message, bytes | bytearray):
        return len(message)
    return len(str(message).encode())


def _as_profile(profile: str | Profile) -> Profile:
    return profile if isinstance(profile, Profile) else find_profile(profile)
