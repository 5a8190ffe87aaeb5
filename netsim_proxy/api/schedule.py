"""Schedule of events, by time or by training round, and the ids of those that have begun."""

import asyncio
import itertools
import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Final

import structlog

from hypergpu.common.clock import monotonic
from hypergpu.common.errors import ResourceExhausted
from hypergpu.netsim_proxy.config.bounds import MAX_EVENTS, MAX_TARGETS
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.link.events import NetworkEvent

log = structlog.get_logger()

_KEPT: Final = 100
"""Past events that are still listed."""
_SHOWN: Final = 200
"""Characters of an event's summary in the log."""
_PRUNE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.005
"""Time for which events that are due together begin before the event loop runs again."""


class State(StrEnum):
    """State of an event."""

    PLANNED = "planned"
    ACTIVE = "active"
    OVER = "over"


@dataclass(slots=True)
class Entry:
    """One event, due `at` a time (seconds of the monotonic clock) or when `round` is announced."""

    event_id: str
    event: NetworkEvent
    at: float | None = None
    round: int | None = None
    state: State = State.PLANNED


class Schedule:
    """Applies events to the links when they are due.

    Events that are due together begin in order. Where they change many links, the next begins when the one before it
    has reached all of them.
    """

    def __init__(self, links: LinkRegistry, pacer: Pacer) -> None:
        self._links, self._pacer = links, pacer
        self._ids = itertools.count(1)
        self._entries: dict[str, Entry] = {}
        self._by_time: list[tuple[float, int, Entry]] = []
        self._by_round: list[tuple[int, int, Entry]] = []
        self._due: deque[Entry] = deque()
        self._targets = 0
        self._round = -1
        self._wake_at = math.inf
        self._pruned_at = -math.inf

    def entries(self) -> list[Entry]:
        """Return planned, running and recent events; recent ones ended by themselves, by a recovery, or at once."""
        self._prune()
        return list(self._entries.values())

    def require_room(self, events: int = 1, targets: int = 0) -> None:
        """Check that so many more events, with so many link names in all, can be added.

        Raises:
            ResourceExhausted: there are too many already.
        """
        if self._is_full(events, targets) and monotonic() - self._pruned_at >= _PRUNE_SECONDS:
            self._prune()
        if self._is_full(events, targets):
            raise ResourceExhausted(
                f"{events} more events with {targets} targets are too many beside the {len(self._entries)} with "
                f"{self._targets} that are planned or run: {MAX_EVENTS} events and {MAX_TARGETS} targets are allowed"
            )

    def add(self, event: NetworkEvent, after_seconds: float | None = None, round_number: int | None = None) -> Entry:
        """Plan an event; without a time and a round, at once.

        Raises:
            ResourceExhausted: there are too many already.
        """
        self.require_room(1, event.size)
        number = next(self._ids)
        entry = Entry(f"event-{number}", event, round=round_number)
        self._entries[entry.event_id] = entry
        self._targets += event.size
        if round_number is not None and round_number > self._round:
            heappush(self._by_round, (round_number, number, entry))
        elif round_number is None and after_seconds:
            entry.at = monotonic() + after_seconds
            heappush(self._by_time, (entry.at, number, entry))
            self._set_wake()
        else:
            self._begin_soon([entry])
        return entry

    def announce_round(self, number: int) -> None:
        """Begin the events of rounds up to `number`, each once, in order of round."""
        self._round = max(self._round, number)
        due = []
        while self._by_round and self._by_round[0][0] <= number:
            due.append(heappop(self._by_round)[2])
        self._begin_soon(due)

    async def settled(self) -> None:
        """Wait until what is due has begun on every link."""
        while self._due or self._links.busy:  # noqa: ASYNC110 - the loop turns anyway until then
            await asyncio.sleep(0)

    def clear(self, node_id: str | None = None) -> int:
        """End running events and forget planned ones, of one link or of all, and return how many there were.

        Raises:
            NotFound: no link for this node.
        """
        if node_id is not None:
            self._links.known(node_id)
        own = [entry for entry in self._entries.values() if node_id is None or entry.event.targets == (node_id,)]
        self.forget(own)
        return self._links.clear(node_id) + sum(entry.state == State.PLANNED for entry in own)

    def forget(self, entries: list[Entry]) -> None:
        """Take events off the list; those that are planned never begin, those that run go on."""
        gone = {entry.event_id for entry in entries}
        for event_id in gone & self._entries.keys():
            self._targets -= self._entries.pop(event_id).event.size
        self._by_time = [item for item in self._by_time if item[2].event_id not in gone]
        self._by_round = [item for item in self._by_round if item[2].event_id not in gone]
        self._due = deque(entry for entry in self._due if entry.event_id not in gone)
        heapify(self._by_time)
        heapify(self._by_round)

    def _is_full(self, events: int, targets: int) -> bool:
        return len(self._entries) + events > MAX_EVENTS or self._targets + targets > MAX_TARGETS

    def _prune(self) -> None:
        self._pruned_at = monotonic()
        running = self._links.running()
        for entry in self._entries.values() if not self._links.busy else ():
            if entry.state == State.ACTIVE and id(entry.event) not in running:
                entry.state = State.OVER
        over = [key for key, entry in self._entries.items() if entry.state == State.OVER]
        for key in over[:-_KEPT]:
            self._targets -= self._entries.pop(key).event.size

    def _set_wake(self) -> None:
        if self._by_time and self._by_time[0][0] < self._wake_at:
            self._wake_at = self._by_time[0][0]
            self._pacer.at(self._wake_at, self._wake, self._wake_at)

    def _wake(self, _now: float, at: float) -> None:
        if at != self._wake_at:  # set before an earlier one
            return
        self._wake_at = math.inf
        due = []
        while self._by_time and self._by_time[0][0] <= at:
            due.append(heappop(self._by_time)[2])
        self._begin_soon(due)
        self._set_wake()

    def _begin_soon(self, due: list[Entry]) -> None:
        begun = bool(self._due)
        self._due.extend(due)
        if not begun:
            self._begin_due()

    def _begin_due(self) -> None:
        pause_at = monotonic() + _PAUSE_SECONDS
        while self._due and not self._links.busy and monotonic() < pause_at:
            self._begin(self._due.popleft())
        if self._due:
            asyncio.get_running_loop().call_soon(self._begin_due)

    def _begin(self, entry: Entry) -> None:
        entry.state = State.ACTIVE
        log.info("event", id=entry.event_id, what=entry.event.summary()[:_SHOWN])
        self._links.apply(entry.event)
