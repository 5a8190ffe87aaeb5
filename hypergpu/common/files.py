"""Bounded readers of files that a user names; every error names the path."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.errors import ConfigError
from hypergpu.common.text import printable

MAX_TEXT_BYTES = 64 << 20
"""Largest file that is read whole. A trace of a long measurement takes about 10 MB."""

_LOOK_SECONDS: Final = 1.0


def read_bytes(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a file or pipe.

    Raises:
        ConfigError: the file cannot be read, or is larger than `max_bytes`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    except (ValueError, MemoryError) as error:  # a NUL in the path
        raise ConfigError(f"cannot read {shown(path)}: {error or 'out of memory'}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"cannot read {shown(path)}: larger than {max_bytes:,} bytes")
    return data


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the UTF-8 text of a file or pipe, without a byte order mark.

    Raises:
        ConfigError: the file cannot be read, is larger than `max_bytes`, or is not UTF-8.
    """
    data = read_bytes(path, max_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"cannot read {shown(path)}: line {line} is not UTF-8 text") from error


def state_of(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with the content of a file; None if it cannot be found."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class FileWatch:
    """Files that may change, looked at once a second at most.

    Args:
        files: files to look at.
        clock: time.
    """

    def __init__(self, files: Iterable[Path], clock: Clock = monotonic) -> None:
        self._files, self._clock = tuple(files), clock
        self._state = self._states()
        self._looked_at = clock()

    def have_changed(self) -> bool:
        """Return whether the files have changed since this was last true; files that are missing have not yet."""
        if not self._files or self._clock() - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = self._clock()
        state = self._states()
        if state == self._state or None in state:
            return False
        self._state = state
        return True

    def _states(self) -> list[tuple[int, int, int] | None]:
        return [state_of(file) for file in self._files]


def shown(path: Path) -> str:
    """Return a path as messages show it."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))
