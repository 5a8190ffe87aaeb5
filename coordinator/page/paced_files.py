"""States of the files of a run, of which large ones change seldom enough for many viewers."""

import math
import threading
from pathlib import Path
from typing import Final

from hypergpu.common.clock import Clock, monotonic
from hypergpu.coordinator.page import record_files
from hypergpu.coordinator.page.record_files import LINES, WHOLE, FileState

_WHOLE_BYTES_PER_SECOND: Final = 100_000.0
"""Rate at which a viewer gets a file that is sent whole: the larger it is, the less often its changes are sent."""


class PacedFiles:
    """States of the files of a run, for any thread; one that is sent whole changes only as often as its size permits.

    A thousand nodes have 700 kB of nodes.json every two seconds, which would be most of the work of a viewer.
    """

    def __init__(self, directory: Path, clock: Clock = monotonic) -> None:
        self._directory, self._clock = directory, clock
        self._lock = threading.Lock()
        self._shown: list[FileState] = [None] * len(WHOLE)
        self._again_at = [-math.inf] * len(WHOLE)

    def states(self) -> tuple[FileState, ...]:
        """Return the state of each file."""
        found, now = record_files.states(self._directory), self._clock()
        with self._lock:
            for number, state in enumerate(found[len(LINES) :]):
                if state != self._shown[number] and now >= self._again_at[number]:
                    self._shown[number] = state
                    self._again_at[number] = now + (state[2] if state else 0) / _WHOLE_BYTES_PER_SECOND
            return (*found[: len(LINES)], *self._shown)
