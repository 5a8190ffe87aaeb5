"""File of lines for a slow or full disk: lines wait in memory until they can be written."""

import os
import threading
from collections import deque
from pathlib import Path

MAX_PENDING_BYTES = 8 << 20
"""Memory for pending lines: hours of a run, at about 300 bytes an event."""


class LineFile:
    """File of lines: `append` keeps a line in memory, `flush` writes the pending lines. Both are thread-safe.

    A line that was written in part is completed before the next one.
    """

    def __init__(self, path: Path, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        """Lock of the pending lines; it is never held during I/O."""
        self._flushing = threading.Lock()
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._is_first_partial = False
        self._is_writing = False
        self._max_pending_bytes = max_pending_bytes
        self.dropped = 0
        """Number of lines dropped because too many were pending."""
        self._written = 0
        self.synced = 0
        """Number of lines that are known to be on the disk, of those appended here; it stays as it is once one was
        dropped."""

    @property
    def pending(self) -> int:
        """Number of pending lines."""
        return len(self._pending)

    def append(self, line: bytes) -> None:
        """Keep a line for the next `flush`. If too many are pending, the oldest are dropped."""
        with self._lock:
            self._pending.append(line)
            self._pending_bytes += len(line)
            self._drop_oldest()

    def flush(self) -> None:
        """Write the pending lines, and those that arrive meanwhile.

        Raises:
            OSError: the disk is full or broken; what is left is kept.
        """
        with self._flushing:
            while line := self._first():
                written = 0
                try:
                    written = self._file.write(line) or 0
                finally:
                    self._note_written(line, written)
                if not written:
                    raise OSError("nothing can be written to it")

    def sync(self) -> None:
        """Sync the written lines to the disk.

        Raises:
            OSError: the disk is full or broken.
        """
        written = self._written
        os.fsync(self._file.fileno())
        self.note_synced(written)

    def note_synced(self, written: int | None = None) -> None:
        """Note that this many lines, by default all that were written, are on the disk."""
        if not self.dropped:
            self.synced = self._written if written is None else written

    def close(self) -> None:
        """Close the file; pending lines are lost."""
        self._file.close()

    def _first(self) -> bytes:
        """Return the oldest pending line, which is not dropped while it is being written; empty if there is none."""
        with self._lock:
            self._is_writing = bool(self._pending)
            return self._pending[0] if self._pending else b""

    def _note_written(self, line: bytes, written: int) -> None:
        with self._lock:
            self._is_writing = False
            self._pending_bytes -= written
            if written == len(line):
                self._pending.popleft()
                self._written += 1
                self._is_first_partial = False
            else:
                self._pending[0] = line[written:]
                self._is_first_partial = self._is_first_partial or written > 0

    def _drop_oldest(self) -> None:
        """Drop the oldest lines above the limit, but none that is partly written: the next would be unreadable."""
        start = 1 if self._is_first_partial or self._is_writing else 0
        while self._pending_bytes > self._max_pending_bytes and len(self._pending) > start + 1:
            self._pending_bytes -= len(self._pending[start])
            del self._pending[start]
            self.dropped += 1
