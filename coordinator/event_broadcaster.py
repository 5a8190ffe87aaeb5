"""Distribution of run events to watching clients."""

import asyncio
from collections import deque

from hypergpu.common.errors import ResourceExhausted
from hypergpu.coordinator.run_records import RunEvent

RECENT = 500
"""Number of events kept for replay to later watchers."""
MAX_WATCHERS = 100
MAX_WATCHERS_OF_CALLER = 16
"""Watchers at one address, so that one caller does not take the places of all."""
_BACKLOG = 1000

Watcher = asyncio.Queue[RunEvent | None]
"""Queue of events; None marks the end."""


class EventBroadcaster:
    """Broadcaster that sends every event to every watcher, and drops a watcher that cannot keep up."""

    def __init__(self) -> None:
        self._recent: deque[RunEvent] = deque(maxlen=RECENT)
        self._watchers: dict[Watcher, str] = {}
        """Watchers with their addresses."""
        self._ended = False

    def subscribe(self, replay: int, address: str = "") -> Watcher:
        """Subscribe to events, preceded by the last `replay` events.

        Raises:
            ResourceExhausted: There are too many watchers.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise ResourceExhausted(f"{MAX_WATCHERS} clients watch this run already")
        if list(self._watchers.values()).count(address) >= MAX_WATCHERS_OF_CALLER:
            raise ResourceExhausted(f"{MAX_WATCHERS_OF_CALLER} clients at {address} watch this run already")
        watcher: Watcher = asyncio.Queue(_BACKLOG)
        for event in list(self._recent)[max(0, len(self._recent) - replay) :]:
            watcher.put_nowait(event)
        if self._ended:
            watcher.put_nowait(None)
        self._watchers[watcher] = address
        return watcher

    def unsubscribe(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        self._watchers.pop(watcher, None)

    def publish(self, event: RunEvent) -> None:
        """Send an event to all watchers."""
        self._recent.append(event)
        for watcher in [w for w in self._watchers if w.full()]:
            self._watchers.pop(watcher, None)  # it can't keep up
            watcher.get_nowait()
            watcher.put_nowait(None)
        for watcher in self._watchers:
            watcher.put_nowait(event)

    def end(self) -> None:
        """End the event stream of all watchers."""
        self._ended = True
        for watcher in self._watchers:
            if not watcher.full():
                watcher.put_nowait(None)
