"""The disk as the durable path uses it: every step that can fail, with the place where a test lets it fail."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypergpu.common.tensors import Payload
from hypergpu.coordinator import files
from hypergpu.coordinator.failpoints import Failpoints, Point

Buffer = bytes | Payload
_CHECKPOINT = {
    files.Step.WRITE: Point.CHECKPOINT_WRITE,
    files.Step.SYNC: Point.CHECKPOINT_SYNC,
    files.Step.DIRECTORY: Point.CHECKPOINT_DIRECTORY,
}


class Storage:
    """The file system. A test's subclass loses what was not synced.

    Args:
        failpoints: Faults of a test; None = none.
    """

    def __init__(self, failpoints: Failpoints | None = None) -> None:
        self._failpoints = failpoints

    def reach(self, point: Point) -> None:
        """Let the fault of a place happen, if a test has set one.

        Raises:
            OSError: the fault is an error.
        """
        if self._failpoints is not None:
            self._failpoints.reach(point)

    def open_end(self, file: Path, point: Point) -> int:
        """Open a file for writing at its end, make it if there is none, and return its descriptor.

        Raises:
            OSError: it cannot be opened.
        """
        self.reach(point)
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, descriptor: int, parts: Sequence[Buffer], point: Point) -> None:
        """Write parts one after the other.

        Raises:
            OSError: they cannot be written, or only in part.
        """
        if self._failpoints is None:
            for part in parts:
                _write(descriptor, part)
            return
        whole = b"".join(_view(part) for part in parts)
        self._failpoints.reach_write(point, len(whole), lambda count: _write(descriptor, whole[:count]))

    def sync(self, descriptor: int, point: Point) -> None:
        """Sync what was written to the disk.

        Raises:
            OSError: the disk has failed: nobody knows what is on it.
        """
        self.reach(point)
        os.fdatasync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def sync_file(self, file: Path) -> None:
        """Sync the content of a file.

        Raises:
            OSError: the disk has failed.
        """
        files.sync_file(file)

    def sync_directory(self, directory: Path, point: Point) -> None:
        """Sync the names in a directory.

        Raises:
            OSError: the disk has failed.
        """
        self.reach(point)
        files.sync_directory(directory)

    def replace_files(self, writes: Mapping[Path, Callable[[Path], Any]]) -> None:
        """Replace the files of a checkpoint atomically; see `files.replace_files`.

        Raises:
            OSError: a file cannot be written.
        """
        files.replace_files(writes, before=lambda step: self.reach(_CHECKPOINT[step]), rename=self.rename)

    def rename(self, partial: Path, file: Path) -> None:
        """Give a file its name, in place of the file that has it.

        Raises:
            OSError: it cannot be renamed.
        """
        self.reach(Point.CHECKPOINT_RENAME)
        partial.replace(file)

    def remove(self, file: Path, point: Point) -> None:
        """Remove a file.

        Raises:
            OSError: it cannot be removed.
        """
        self.reach(point)
        file.unlink()

    def cut(self, file: Path, nbytes: int) -> None:
        """Cut a file to its first bytes, and sync it.

        Raises:
            OSError: it cannot be cut.
        """
        self.reach(Point.LOG_CUT)
        os.truncate(file, nbytes)
        self.sync_file(file)


def _view(data: Buffer) -> memoryview:
    return (memoryview(data) if isinstance(data, bytes) else data.data).cast("B")


def _write(descriptor: int, data: Buffer) -> None:
    view = _view(data)
    while view:
        view = view[os.write(descriptor, view) :]
