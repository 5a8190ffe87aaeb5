"""Events to come: by time or by training round; and the ids of those that have begun."""

import itertools
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog

from common.clock import monotonic
from netsim_proxy.link.events import NetworkEvent
from netsim_proxy.pacer import Pacer
from netsim_proxy.ports import Ports

log = structlog.get_logger()

_KEPT: Final = 100
"""Events that are over and still listed."""


class State(StrEnum):
    """Where an event stands."""

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
    """Applies events to the links when they are due."""

    def __init__(self, ports: Ports, pacer: Pacer) -> None:
        self._ports, self._pacer = ports, pacer
        self._ids = itertools.count(1)
        self._entries: dict[str, Entry] = {}
        self._round = -1

    def entries(self) -> list[Entry]:
        """What is to come, what runs, and the last of what is over: ended by itself, by a recovery, or done at once."""
        for entry in self._entries.values():
            if entry.state == State.ACTIVE and not self._ports.runs(entry.event):
                entry.state = State.OVER
        over = [key for key, entry in self._entries.items() if entry.state == State.OVER]
        for key in over[:-_KEPT]:
            del self._entries[key]
        return list(self._entries.values())

    def add(self, event: NetworkEvent, after_seconds: float | None = None, round_number: int | None = None) -> Entry:
        """Plan an event; without a time and a round, at once."""
        if len(self._entries) > 2 * _KEPT:
            self.entries()
        entry = Entry(f"event-{next(self._ids)}", event, round=round_number)
        self._entries[entry.event_id] = entry
        if round_number is not None:
            if round_number <= self._round:
                self._begin(entry)
        elif after_seconds:
            entry.at = monotonic() + after_seconds
            self._pacer.at(entry.at, self._due, entry.event_id)
        else:
            self._begin(entry)
        return entry

    def announce_round(self, number: int) -> None:
        """The coordinator is in round `number`: events of rounds up to it begin, each once, in order of round."""
        self._round = max(self._round, number)
        due = [
            e for e in self._entries.values() if e.state == State.PLANNED and e.round is not None and e.round <= number
        ]
        for entry in sorted(due, key=lambda e: e.round or 0):
            self._begin(entry)

    def clear(self, node_id: str | None = None) -> int:
        """End running events and forget planned ones, of one link or of all, and return how many there were.

        Raises:
            NotFound: no link for this node.
        """
        if node_id is not None:
            self._ports.known(node_id)
        own = [entry for entry in self._entries.values() if node_id is None or entry.event.targets == (node_id,)]
        for entry in own:
            del self._entries[entry.event_id]
        return self._ports.clear(node_id) + sum(entry.state == State.PLANNED for entry in own)

    def _due(self, event_id: str) -> None:
        entry = self._entries.get(event_id)
        if entry is not None:
            self._begin(entry)

    def _begin(self, entry: Entry) -> None:
        entry.state = State.ACTIVE
        log.info("event", id=entry.event_id, what=entry.event.summary())
        self._ports.apply(entry.event)
