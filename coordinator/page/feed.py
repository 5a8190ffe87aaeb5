"""Feed of a run for viewers. Each reads the files of the run at its own speed; one thread looks for changes."""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.daemon_thread import in_daemon_thread
from hypergpu.common.errors import ResourceExhausted
from hypergpu.common.http import Chunks
from hypergpu.coordinator.page import record_files
from hypergpu.coordinator.page.paced_files import PacedFiles
from hypergpu.coordinator.page.record_files import Piece, Place, message

MAX_VIEWERS: Final = 32
MAX_VIEWERS_OF_CALLER: Final = 12
"""Viewers at one address, so that one caller does not take the places of all."""
_LOOK_SECONDS: Final = 0.1
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
        self._paced = PacedFiles(directory)
        self._changes = _Changes(self._paced)
        self._reading: dict[Hashable, asyncio.Task[Piece]] = {}
        """Reads that go on, each for all viewers who are at the same place."""

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
                piece = await self._read(place, last_event_id)
                place = piece.place
                if piece.events:
                    yield piece.events
                if piece.more:
                    continue
                if not told:
                    told = True
                    yield await in_daemon_thread(partial(self._caught_up, place), "page")
                while not await _within(changed, _QUIET_SECONDS):
                    yield b": nothing new\n\n"
        finally:
            self._viewers[address] -= 1
            if not self._viewers.total():
                self._changes.rest()

    async def _read(self, place: Place | None, last_event_id: str) -> Piece:
        """Return what follows a place. Viewers who wait for the same since the latest change share one read."""
        key = (place, last_event_id if place is None else "", self._changes.count)
        reading = self._reading.get(key)
        if reading is None:
            read = in_daemon_thread(partial(self._next, place, last_event_id), "page")
            reading = self._reading[key] = asyncio.create_task(read)
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(reading)

    def _next(self, place: Place | None, last_event_id: str) -> Piece:
        """Return the next events, from the beginning if the files have been replaced."""
        found = self._paced.states()
        generation = record_files.generation_of(found, self._name)
        begin = b""
        if place is None or place.generation != generation:
            resumed = record_files.place_of(last_event_id if place is None else "", generation)
            kind = "about" if any(resumed.bytes) else "begin"
            place, begin = resumed, message(kind, strict_json.dumps(dict(self._about()), default=str))
        piece = record_files.read_piece(self._directory, found, place)
        return piece._replace(events=begin + piece.events)

    def _caught_up(self, place: Place) -> bytes:
        faults = record_files.faults(self._directory, place, is_written=bool(self._about().get("live")))
        return b"".join(message("note", fault) for fault in faults) + message("caught_up", "")


class _Changes:
    """Thread that looks for changes of the files while there are viewers, and wakes them."""

    def __init__(self, files: PacedFiles) -> None:
        self._files = files
        self._changed: asyncio.Event | None = None
        self._resting: threading.Event | None = None
        self.count = 0
        """Number of changes seen."""

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
            found = self._files.states()
            if found != seen:
                seen = found
                try:
                    loop.call_soon_threadsafe(self._wake)
                except RuntimeError:  # the server has been closed
                    return

    def _wake(self) -> None:
        self.count += 1
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
