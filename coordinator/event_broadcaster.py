"""The events of a run, for whoever watches it."""

import asyncio
from collections import deque

from hypergpu.common.errors import ResourceExhausted
from hypergpu.coordinator.run_records import RunEvent

RECENT = 500
"""Events that are kept for watchers who come later."""
MAX_WATCHERS = 100
_BACKLOG = 1000

Watcher = asyncio.Queue[RunEvent | None]
"""Events as they happen; None ends them."""


class EventBroadcaster:
    """Hands every event to every watcher, and drops a watcher that cannot keep up."""

    def __init__(self) -> None:
        self._recent: deque[RunEvent] = deque(maxlen=RECENT)
        self._watchers: set[Watcher] = set()
        self._ended = False

    def subscribe(self, replay: int) -> Watcher:
        """Events as they happen, after the last `replay`.

        Raises:
            ResourceExhausted: too many watch already.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise ResourceExhausted(f"{MAX_WATCHERS} clients watch this run already")
        watcher: Watcher = asyncio.Queue(_BACKLOG)
        for event in list(self._recent)[max(0, len(self._recent) - replay) :]:
            watcher.put_nowait(event)
        if self._ended:
            watcher.put_nowait(None)
        self._watchers.add(watcher)
        return watcher

    def unsubscribe(self, watcher: Watcher) -> None:
        """The watcher is gone."""
        self._watchers.discard(watcher)

    def publish(self, event: RunEvent) -> None:
        """Tell everybody."""
        self._recent.append(event)
        for watcher in [w for w in self._watchers if w.full()]:
            self._watchers.discard(watcher)  # it can't keep up
            watcher.get_nowait()
            watcher.put_nowait(None)
        for watcher in self._watchers:
            watcher.put_nowait(event)

    def end(self) -> None:
        """The run is over: no more will come."""
        self._ended = True
        for watcher in self._watchers:
            if not watcher.full():
                watcher.put_nowait(None)
