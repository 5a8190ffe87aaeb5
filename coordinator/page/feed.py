"""Feed of a run for viewers. Each reads the files of the run at its own speed; one thread looks for changes."""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.daemon_thread import in_daemon_thread
from hypergpu.common.errors import ResourceExhausted
from hypergpu.common.http import Chunks
from hypergpu.coordinator.page import record_files
from hypergpu.coordinator.page.record_files import Place, message

MAX_VIEWERS: Final = 32
MAX_VIEWERS_OF_CALLER: Final = 12
"""Viewers at one address, so that one caller does not take the places of all."""
_LOOK_SECONDS: Final = 0.05
"""Interval at which the files are looked at while somebody watches."""
_QUIET_SECONDS: Final = 10.0
"""Longest silence of a stream: by it a viewer tells a quiet run from a broken connection."""

About = Callable[[], Mapping[str, Any]]


class Feed:
    """Records of a run directory for many viewers, in the event loop of an HTTP server.

    Args:
        directory: the run.
        about: what a viewer is told first of the run; `live` says whether this process writes it.
    """

    def __init__(self, directory: Path, about: About) -> None:
        self._directory, self._about = directory, about
        self._name = secrets.token_hex(4)
        self._viewers: Counter[str] = Counter()
        self._changes = _Changes(directory)

    def open(self, address: str, last_event_id: str) -> Chunks:
        """Return the events for a viewer: those after `last_event_id`, or all, and then each as it happens.

        Raises:
            ResourceExhausted: there are too many viewers.
        """
        if self._viewers.total() >= MAX_VIEWERS:
            raise ResourceExhausted(f"{MAX_VIEWERS} pages show this run already")
        if self._viewers[address] >= MAX_VIEWERS_OF_CALLER:
            raise ResourceExhausted(f"{MAX_VIEWERS_OF_CALLER} pages at {address} show this run already")
        return self._chunks(address, last_event_id)

    async def _chunks(self, address: str, last_event_id: str) -> Chunks:
        self._viewers[address] += 1
        try:
            place: Place | None = None
            told = False
            while True:
                changed = self._changes.watched()
                following, chunk = await in_daemon_thread(partial(self._next, place, last_event_id), "page")
                place = following
                if not chunk and not told:
                    told, chunk = True, await in_daemon_thread(partial(self._caught_up, following), "page")
                if chunk:
                    yield chunk
                elif not await _within(changed, _QUIET_SECONDS):
                    yield b": nothing new\n\n"
        finally:
            self._viewers[address] -= 1
            if not self._viewers.total():
                self._changes.rest()

    def _next(self, place: Place | None, last_event_id: str) -> tuple[Place, bytes]:
        """Return the next events and the place after them, from the beginning if the files have been replaced."""
        generation = record_files.generation_of(self._directory, self._name)
        begin = b""
        if place is None or place.generation != generation:
            resumed = record_files.place_of(last_event_id if place is None else "", generation)
            kind = "about" if any(resumed.bytes) else "begin"
            place, begin = resumed, message(kind, strict_json.dumps(dict(self._about()), default=str))
        chunk, place = record_files.read_piece(self._directory, place)
        return place, begin + chunk

    def _caught_up(self, place: Place) -> bytes:
        faults = record_files.faults(self._directory, place, is_written=bool(self._about().get("live")))
        return b"".join(message("note", fault) for fault in faults) + message("caught_up", "")


class _Changes:
    """Thread that looks for changes of the files while there are viewers, and wakes them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._changed: asyncio.Event | None = None
        self._resting: threading.Event | None = None

    def watched(self) -> asyncio.Event:
        """Return what is set at the next change."""
        if self._changed is None:
            self._changed = asyncio.Event()
        if self._resting is None:
            self._resting = threading.Event()
            arguments = (asyncio.get_running_loop(), self._resting)
            threading.Thread(target=self._look, args=arguments, name="page changes", daemon=True).start()
        return self._changed

    def rest(self) -> None:
        """Stop looking."""
        if self._resting is not None:
            self._resting.set()
            self._resting = None

    def _look(self, loop: asyncio.AbstractEventLoop, resting: threading.Event) -> None:
        seen: object = None  # who watches has begun to read before: the first look wakes it
        while not resting.is_set():
            time.sleep(_LOOK_SECONDS)
            found = record_files.states(self._directory)
            if found != seen:
                seen = found
                try:
                    loop.call_soon_threadsafe(self._wake)
                except RuntimeError:  # the server has been closed
                    return

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Return whether an event is set in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
