"""A file of lines that survives a full disk: what cannot be written now is kept in memory and written later."""

import os
from collections import deque
from pathlib import Path

MAX_PENDING_BYTES = 8 << 20
"""Lines that are kept while they cannot be written: a run of hours, at some 300 bytes an event."""


class LineFile:
    """Appends lines in order. A line that was written in part is completed before the next one."""

    def __init__(self, path: Path, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = path.open("ab", buffering=0)
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._is_first_partial = False
        self._max_pending_bytes = max_pending_bytes
        self.dropped = 0
        """Lines that were given up, because too many could not be written."""

    @property
    def pending(self) -> int:
        """Lines that are not written yet."""
        return len(self._pending)

    def append(self, line: bytes) -> None:
        """Write a line, after those that are pending.

        Raises:
            OSError: it cannot be written now; it is kept.
        """
        self._pending.append(line)
        self._pending_bytes += len(line)
        self._drop_oldest()
        self.flush()

    def flush(self) -> None:
        """Write the pending lines.

        Raises:
            OSError: the disk is full or broken; what is left is kept.
        """
        while self._pending:
            first = self._pending[0]
            written = self._file.write(first) or 0
            self._pending_bytes -= written
            if written < len(first):
                self._is_first_partial = self._is_first_partial or written > 0
                self._pending[0] = first[written:]
                if not written:
                    raise OSError("nothing can be written to it")
                continue
            self._pending.popleft()
            self._is_first_partial = False

    def sync(self) -> None:
        """Wait until what was written is on the disk.

        Raises:
            OSError: the disk is full or broken.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; pending lines are lost."""
        self._file.close()

    def _drop_oldest(self) -> None:
        """Keep the memory bounded. The rest of a line that is begun stays: without it the next would be unreadable."""
        start = 1 if self._is_first_partial else 0
        while self._pending_bytes > self._max_pending_bytes and len(self._pending) > start + 1:
            self._pending_bytes -= len(self._pending[start])
            del self._pending[start]
            self.dropped += 1
