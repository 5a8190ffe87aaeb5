"""The events that act on one link now, folded into what its paths are like."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from netsim_proxy.link.events import DisconnectMode, EventType, NetworkEvent
from netsim_proxy.link.profiles import Profile

_DEFAULT_SPIKE_FACTOR: Final = 5.0
_DEFAULT_COLLAPSE_FACTOR: Final = 0.1
_DEFAULT_FLAP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why nothing passes a link, and until when as far as is known."""

    cause: str
    until: float
    reset: bool


@dataclass(slots=True)
class _Active:
    event: NetworkEvent
    began: float
    until: float
    profile: Profile | None = None


class Conditions:
    """The profile of a link and the events that run on it. Read the fields; `advance` them first.

    Attributes:
        profile: what the link is like, without spikes and collapses.
        latency_factor, added_seconds: what a one-way delay is multiplied by, and gains.
        bandwidth_factor: the share of the bandwidth that is left.
        blocked: why nothing passes, or None.
        next_change: when the fields change by themselves; infinite = never.
    """

    __slots__ = (
        "_active", "_base", "_base_since",
        "added_seconds", "bandwidth_factor", "blocked", "latency_factor", "next_change", "profile",
    )  # fmt: skip

    def __init__(self, profile: Profile) -> None:
        self._base = profile
        self._base_since: float | None = None
        self._active: list[_Active] = []
        self._fold(-math.inf)

    def set_profile(self, profile: Profile, now: float) -> None:
        """Change the profile for good."""
        self._base = profile
        self._base_since = now
        self._active = [a for a in self._active if a.profile is None]
        self._fold(now)

    def apply(self, event: NetworkEvent, now: float, find_profile: Callable[[str], Profile]) -> None:
        """Let an event begin now; a recovery ends the others instead.

        Raises:
            UnknownName: a profile change to a profile that there is not.
        """
        if event.event_type == EventType.RECOVERY:
            self.clear(now)
            return
        if event.event_type == EventType.PROFILE_CHANGE:
            profile = find_profile(event.new_profile)
            if not event.duration_seconds:
                self.set_profile(profile, now)
                return
            active = _Active(event, now, now + event.duration_seconds, profile)
        elif event.mode == DisconnectMode.HALF_OPEN:
            return  # acts on the connections that there are; the link itself stays as it is
        else:
            active = _Active(event, now, now + event.duration_seconds if event.duration_seconds else math.inf)
        self._active.append(active)
        self._fold(now)

    def clear(self, now: float) -> int:
        """End all running events and return how many there were."""
        count = len(self._active)
        self._active.clear()
        self._fold(now)
        return count

    def advance(self, now: float) -> None:
        """Let events end, and flaps turn, that are due."""
        if now >= self.next_change:
            self._active = [a for a in self._active if now < a.until]
            self._fold(now)

    def active(self) -> list[NetworkEvent]:
        """The events that run."""
        return [a.event for a in self._active]

    def _fold(self, now: float) -> None:
        self.profile, self.next_change = self._replayed(now)
        self.latency_factor = self.bandwidth_factor = 1.0
        self.added_seconds = 0.0
        self.blocked: Blocked | None = None
        for active in self._active:
            self.next_change = min(self.next_change, active.until)
            event = active.event
            match event.event_type:
                case EventType.PROFILE_CHANGE:
                    self.profile = active.profile or self.profile
                case EventType.LATENCY_SPIKE:
                    plain = not event.factor and not event.added_ms
                    self.latency_factor *= _DEFAULT_SPIKE_FACTOR if plain else event.factor or 1.0
                    self.added_seconds += event.added_ms / 2000  # half of a round trip
                case EventType.BANDWIDTH_COLLAPSE:
                    self.bandwidth_factor *= event.factor or _DEFAULT_COLLAPSE_FACTOR
                case EventType.DISCONNECT:
                    self._block("disconnected", active.until, event.mode != DisconnectMode.BLACK_HOLE)
                case EventType.PARTITION:
                    self._block("partitioned", active.until, False)
                case EventType.FLAP:
                    self._flap(active, now)

    def _replayed(self, now: float) -> tuple[Profile, float]:
        """The base profile, or what it replays now; and until when."""
        trace = self._base.trace
        if trace is None:
            return self._base, math.inf
        if self._base_since is None:
            if now == -math.inf:
                return trace.profile_at(0.0), now  # it begins with the first that happens on the link
            self._base_since = now
        into = now - self._base_since
        return trace.profile_at(into), self._base_since + trace.next_change(into)

    def _flap(self, flap: _Active, now: float) -> None:
        half = (flap.event.period_seconds or _DEFAULT_FLAP_SECONDS) / 2
        turns = int((now - flap.began) / half + 1e-9)
        turn = min(flap.began + (turns + 1) * half, flap.until)
        self.next_change = min(self.next_change, turn)
        if turns % 2 == 0:
            self._block("flapping", turn, flap.event.mode == DisconnectMode.RESET)

    def _block(self, cause: str, until: float, reset: bool) -> None:
        last = self.blocked
        if last is None:
            self.blocked = Blocked(cause, until, reset)
        else:
            self.blocked = Blocked(last.cause, max(last.until, until), last.reset or reset)
