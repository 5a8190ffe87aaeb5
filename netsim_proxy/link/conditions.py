"""Active events of one link, combined into the conditions of its paths."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from hypergpu.common.errors import InvalidInput
from hypergpu.netsim_proxy.link.effect import no_effect_reason
from hypergpu.netsim_proxy.link.events import DisconnectMode, EventDirection, EventType, NetworkEvent
from hypergpu.netsim_proxy.link.profiles import Profile
from hypergpu.netsim_proxy.link.regions import keep_distance

_DEFAULT_SPIKE_FACTOR: Final = 5.0
_DEFAULT_COLLAPSE_FACTOR: Final = 0.1
_DEFAULT_FLAP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Blockage:
    """Reason why a link passes nothing, and until when, if known."""

    cause: str
    until: float
    reset: bool


@dataclass(slots=True)
class DirectionEffects:
    """Effect of the active events on one direction."""

    latency_factor: float = 1.0
    added_seconds: float = 0.0
    """Factor of the one-way delay; `added_seconds` comes on top."""
    bandwidth_factor: float = 1.0
    """Remaining share of the bandwidth."""
    limit_bytes: float = math.inf
    """Bytes that a connection may carry from the start of the event."""
    close_delay_seconds: float = 0.0
    """Delay of the end of a connection."""
    blocked: Blockage | None = None
    """Reason why nothing passes, or None."""


@dataclass(slots=True)
class _Active:
    event: NetworkEvent
    began: float
    until: float
    profile: Profile | None = None
    direction: EventDirection = EventDirection.BOTH
    """Direction of the event, less one that has recovered."""


class Conditions:
    """Profile and active events of a link. Call `advance` before reading the fields.

    Attributes:
        profile: current profile, without spikes and collapses.
        up, down: effect of the active events on each direction.
        lifetimes: pairs of an event's start time and the seconds it allows a connection to last.
        next_change: time at which the fields change next without a new event; infinite = never.
    """

    __slots__ = ("_active", "_base", "_base_since", "down", "lifetimes", "next_change", "profile", "up")

    def __init__(self, profile: Profile) -> None:
        self._base = profile
        self._base_since: float | None = None
        self._active: list[_Active] = []
        self._combine(-math.inf)

    def set_profile(self, profile: Profile, now: float, direction: EventDirection = EventDirection.BOTH) -> None:
        """Change the base profile, in both directions or one.

        Raises:
            InvalidInput: a single direction, and one of the profiles is a recorded trace.
        """
        if direction != EventDirection.BOTH:
            profile = one_way(self._base, profile, direction)
        self._base = profile
        self._base_since = now
        self._active = [
            a for a in self._active if a.profile is None or direction not in (EventDirection.BOTH, a.direction)
        ]
        self._combine(now)

    def apply(self, event: NetworkEvent, now: float, find_profile: Callable[[str], Profile]) -> None:
        """Start an event now; a recovery ends active events instead.

        Raises:
            UnknownName: the new profile does not exist.
            InvalidInput: a profile change of one direction, from or to a recorded trace.
        """
        direction = EventDirection(event.direction)
        until = now + event.duration_seconds if event.duration_seconds else math.inf
        if event.event_type == EventType.RECOVERY:
            self.clear(now, direction)
            return
        if event.event_type == EventType.PROFILE_CHANGE:
            profile = keep_distance(self._base, find_profile(event.new_profile))
            if not event.duration_seconds:
                self.set_profile(profile, now, direction)
                return
            if direction != EventDirection.BOTH:
                one_way(self._base, profile, direction)
            active = _Active(event, now, until, profile, direction)
        elif event.mode == DisconnectMode.HALF_OPEN:
            return  # acts on existing connections; the link itself stays the same
        else:
            active = _Active(event, now, until, None, direction)
        self._active.append(active)
        self._combine(now)

    def clear(self, now: float, direction: EventDirection = EventDirection.BOTH) -> int:
        """End all active events, or their effect in one direction, and return how many were affected."""
        kept, concerned = [], 0
        for active in self._active:
            if direction not in (EventDirection.BOTH, active.direction):
                concerned += active.direction == EventDirection.BOTH
                if active.direction == EventDirection.BOTH:
                    active.direction = direction.opposite
                kept.append(active)
            else:
                concerned += 1
        self._active = kept
        self._combine(now)
        return concerned

    def advance(self, now: float) -> None:
        """End events that are over; switch flaps."""
        if now >= self.next_change:
            self._active = [a for a in self._active if now < a.until]
            self._combine(now)

    def active(self) -> list[NetworkEvent]:
        """Return the active events."""
        return [a.event for a in self._active]

    def summaries(self) -> list[str]:
        """Return one line per active event, with its remaining direction."""
        events = [replace(a.event, direction=a.direction) for a in self._active]
        reasons = [no_effect_reason(event, self.profile) for event in events]
        return [
            f"{event.summary()} (no effect: {reason})" if reason else event.summary()
            for event, reason in zip(events, reasons, strict=True)
        ]

    @property
    def is_degraded(self) -> bool:
        """True if an active event changes anything."""
        return any(not no_effect_reason(replace(a.event, direction=a.direction), self.profile) for a in self._active)

    def _combine(self, now: float) -> None:
        self.profile, self.next_change = self._current_profile(now)
        self.up, self.down = DirectionEffects(), DirectionEffects()
        self.lifetimes: list[tuple[float, float]] = []
        for active in self._active:
            self.next_change = min(self.next_change, active.until)
            event, direction = active.event, active.direction
            if active.profile is not None:
                self.profile = one_way(self.profile, active.profile, direction)
            if event.event_type in (EventType.LIMIT_TIME, EventType.TIMEOUT):
                self.lifetimes.append((active.began, event.close_after_seconds))
            for effects in self._effects_of(direction):
                self._act(active, effects, now)

    def _act(self, active: _Active, effects: DirectionEffects, now: float) -> None:
        event = active.event
        match event.event_type:
            case EventType.LATENCY_SPIKE:
                plain = not event.factor and not event.added_ms
                effects.latency_factor *= _DEFAULT_SPIKE_FACTOR if plain else event.factor or 1.0
                # Half of a round trip, unless it is all on one path.
                effects.added_seconds += event.added_ms / (2000 if event.direction == EventDirection.BOTH else 1000)
            case EventType.BANDWIDTH_COLLAPSE:
                effects.bandwidth_factor *= event.factor or _DEFAULT_COLLAPSE_FACTOR
            case EventType.DISCONNECT:
                default = DisconnectMode.RESET if event.direction == EventDirection.BOTH else DisconnectMode.BLACK_HOLE
                _block(effects, "disconnected", active.until, (event.mode or default) == DisconnectMode.RESET)
            case EventType.PARTITION:
                _block(effects, "partitioned", active.until, False)
            case EventType.TIMEOUT:
                _block(effects, "timeout", active.until, False)
            case EventType.LIMIT_DATA:
                effects.limit_bytes = min(effects.limit_bytes, event.limit_bytes)
            case EventType.SLOW_CLOSE:
                effects.close_delay_seconds += event.close_after_seconds
            case EventType.FLAP:
                self._flap(active, effects, now)

    def _effects_of(self, direction: EventDirection) -> tuple[DirectionEffects, ...]:
        if direction == EventDirection.BOTH:
            return self.up, self.down
        return (self.up,) if direction == EventDirection.UP else (self.down,)

    def _current_profile(self, now: float) -> tuple[Profile, float]:
        """Return the base profile, or the current row of its trace; and when it changes."""
        trace = self._base.trace
        if trace is None:
            return self._base, math.inf
        if self._base_since is None:
            if now == -math.inf:
                return keep_distance(
                    self._base, trace.profile_at(0.0)
                ), now  # the trace starts with the first use of the link
            self._base_since = now
        elapsed = now - self._base_since
        return keep_distance(self._base, trace.profile_at(elapsed)), self._base_since + trace.next_change(elapsed)

    def _flap(self, flap: _Active, effects: DirectionEffects, now: float) -> None:
        half = (flap.event.period_seconds or _DEFAULT_FLAP_SECONDS) / 2
        switches = int((now - flap.began) / half + 1e-9)
        next_switch = min(flap.began + (switches + 1) * half, flap.until)
        self.next_change = min(self.next_change, next_switch)
        if switches % 2 == 0:
            _block(effects, "flapping", next_switch, flap.event.mode == DisconnectMode.RESET)


def one_way(base: Profile, profile: Profile, direction: EventDirection) -> Profile:
    """Return `base` with one direction, or both, of `profile`.

    Raises:
        InvalidInput: a single direction, and one of the profiles is a recorded trace.
    """
    if direction == EventDirection.BOTH:
        return profile
    for each in (base, profile):
        if each.trace is not None:
            raise InvalidInput(f"{each.name} is a recorded path, which sets both directions: apply it to both")
    return _merged(base, profile, direction)


@lru_cache(maxsize=256)  # a link compares profiles by identity
def _merged(base: Profile, profile: Profile, direction: EventDirection) -> Profile:
    first, *changes = base.name.split(" with ")
    kept = [change for change in changes if not change.endswith(f" {direction}")]
    name = " with ".join([first, *kept, f"{profile.local_name} {direction}"])
    if direction == EventDirection.UP:
        return replace(base, name=name, up=profile.up)
    return replace(base, name=name, down=profile.down)


def _block(effects: DirectionEffects, cause: str, until: float, reset: bool) -> None:
    last = effects.blocked
    if last is None:
        effects.blocked = Blockage(cause, until, reset)
    else:
        effects.blocked = Blockage(last.cause, max(last.until, until), last.reset or reset)
