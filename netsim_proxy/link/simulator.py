"""The link models as a library: what happens to one communication after the other, and nobody sleeps."""

import math
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from hypergpu.common.clock import Clock, monotonic, wall
from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.events import ALL, UPSTREAM, EventType, NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Cause, Direction, Fail, Hold, LossModel
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.regions import between_regions, find_region
from hypergpu.netsim_proxy.link.timeline import Timeline

Message = TypeVar("Message")

_GIVE_UP_SECONDS: Final = 5.0
"""When a caller gives up on a link that says nothing at all."""
_SPIKE_FACTOR: Final = 5.0
_BACKOFF_SECONDS: Final = (0.1, 10.0)
"""Before the first retry, and at most."""
_OF_CONNECTIONS: Final = (EventType.LIMIT_TIME, EventType.SLOW_CLOSE)
_WALL_TIME: Final = 1e9
"""No monotonic clock has run for 31 years: a time beyond is one since the epoch."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Profile of a node's last mile, and the region that it is in."""

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
    """Simulates communications over links, each by its node's profile. Latencies are in milliseconds.

    Time is that of `clock`: events begin and end by it. A communication takes no time on it, as nothing sleeps.
    """

    def __init__(
        self,
        default_profile: str | Profile = "average",
        *,
        seed: int = 0,
        clock: Clock = monotonic,
        loss_model: LossModel | str = LossModel.RPC,
        upstream_region: str = "us-east",
    ) -> None:
        self._default = _as_profile(default_profile)
        self._upstream_region = find_region(upstream_region)
        self._places: dict[str, _Place] = {}
        self._seed = seed
        self._clock = clock
        self._began = clock()
        self._loss_model = LossModel(loss_model)
        self._links: dict[str, Link] = {}
        self._tallies: dict[str, _Tally] = {}
        self._timeline = Timeline()
        self._for_all: list[tuple[float, NetworkEvent]] = []

    def set_node_profile(self, node_id: str, profile: str | Profile, region: str | None = None) -> None:
        """Give a node's link a profile, for good.

        Args:
            node_id: the node.
            profile: name of a profile, or a profile of your own.
            region: where the node is, as in eu-west: the round trip to `upstream_region` comes on top of the profile.
                None keeps the region that the node has, "" takes it away.

        Raises:
            UnknownName: no such profile or region; the message names the nearest.
        """
        place = self._places.get(node_id, _Place(self._default))
        self._move(node_id, _Place(_as_profile(profile), place.region if region is None else region))

    def set_node_region(self, node_id: str, region: str) -> None:
        """Place a node in a region: the round trip to `upstream_region` comes on top of its profile.

        Round trips are public figures, see `regions.py`. "" takes the region away. An event that
        changes the profile leaves the distance as it is.

        Raises:
            UnknownName: no such region; the message names the nearest.
        """
        self._move(node_id, _Place(self._places.get(node_id, _Place(self._default)).profile, region))

    def simulate_communication(self, node_id: str, message: Message) -> tuple[bool, float, Message | None]:
        """One round trip with `message`: whether it succeeded, what it took in ms, and the message if it arrived."""
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
        """Return the same, tried again up to `max_retries` times after exponentially growing waits with full jitter.

        Returns success, the whole time in ms with all tries and waits, the message if it arrived, and the tries made.
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
        """Multiply a node's latencies by `factor` from now on, for so long."""
        self._apply(
            NetworkEvent(EventType.LATENCY_SPIKE, node_id, duration_seconds=duration_seconds, factor=factor),
            self._advance(),
        )

    def inject_event(self, event: NetworkEvent) -> None:
        """Let an event happen now, whenever it was scheduled for.

        Raises:
            InvalidInput: an event that has no effect here: limit_time or slow_close.
            UnknownName: a profile change to a profile that does not exist.
        """
        _require_effect(event)
        self._apply(event, self._advance())

    def schedule_event(self, event: NetworkEvent) -> None:
        """Let an event happen at its `scheduled_time` or in its round; at once where it has neither.

        The time is one of the simulator's clock, or one since the epoch. A time before the simulator was made counts
        from then on: 5.0 is five seconds after its beginning.

        Raises:
            InvalidInput: an event that has no effect here: limit_time or slow_close.
            UnknownName: a profile change to a profile that does not exist.
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
        self._timeline.add(event if event.scheduled_round is not None else replace(event, scheduled_time=at))

    def announce_round(self, number: int) -> None:
        """Begin the events of a training round, and of rounds before it."""
        now = self._advance()
        for event in self._timeline.due_in_round(number):
            self._apply(event, now)

    def get_node_metrics(self, node_id: str) -> dict[str, Any]:
        """Return properties and counters of a node's link; latencies are those of successful communications."""
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
            link = Link(node_id, self._default, self._seed, loss_model=self._loss_model)
            self._links[node_id] = link
            self._tallies[node_id] = _Tally()
            for at, event in self._for_all:
                if event.concerns(node_id):
                    link.apply(event, at)
        return link

    def _advance(self) -> float:
        now = self._clock()
        if now >= self._timeline.next_at:
            for at, event in self._timeline.due(now):
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
    """Success and seconds. Time stands still meanwhile, and the link is idle before: events go by the clock alone."""
    link.settle()
    exchange = link.begin(now)
    seconds = 0.0
    for direction, size in ((Direction.UP, nbytes), (Direction.DOWN, 1)):
        outcome = link.offer(now, direction, size, exchange, end=True)
        if isinstance(outcome, Hold):
            link.disconnect(exchange.connection)
            return False, _GIVE_UP_SECONDS
        seconds += outcome.at - now
        if isinstance(outcome, Fail):
            if outcome.cause is not Cause.LOSS:
                link.disconnect(exchange.connection)  # the next one connects anew
            return False, seconds
    return True, seconds


def _require_effect(event: NetworkEvent) -> None:
    if event.event_type in _OF_CONNECTIONS:
        raise InvalidInput(
            f"{event.event_type} has no effect in NetworkSimulator: it acts on how connections end, and only single "
            "communications are simulated; use the proxy for it"
        )


def _size_of(message: object) -> int:
    """Return the bytes of a message: of bytes and arrays their length, of anything else that of its text."""
    size = getattr(message, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(message, bytes | bytearray):
        return len(message)
    return len(str(message).encode())


def _as_profile(profile: str | Profile) -> Profile:
    return profile if isinstance(profile, Profile) else find_profile(profile)
