"""Buffers on the disk for uploads that do not fit in memory."""

import mmap
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np

from hypergpu.common.errors import StorageError
from hypergpu.common.tensors import Payload


class MemoryFirst:
    """Allocates buffers in memory up to a limit, and on the disk beyond it.

    Args:
        directory: Directory of the buffers on the disk.
        memory_bytes: Limit of all buffers in memory that are in use.
    """

    def __init__(self, directory: Path, memory_bytes: int) -> None:
        self._directory, self._left = directory, memory_bytes

    def __call__(self, total_bytes: int) -> Payload:
        """Return a buffer.

        Raises:
            StorageError: The memory is used up, and the disk is full.
        """
        if total_bytes > self._left:
            return spilled_buffer(self._directory, total_bytes)
        self._left -= total_bytes
        buffer = np.empty(total_bytes, np.uint8)
        weakref.finalize(buffer, self._free, total_bytes)
        return buffer

    def _free(self, total_bytes: int) -> None:
        self._left += total_bytes


def spilled_buffer(directory: Path, total_bytes: int) -> Payload:
    """Return a buffer backed by an unnamed file, which disappears with the buffer or the process.

    All of its blocks are reserved here, so that a full disk is reported as an error: a write to a page without a block
    kills the process.

    Raises:
        StorageError: The disk is full or cannot reserve the space.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, total_bytes)
            mapped = mmap.mmap(file.fileno(), total_bytes)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StorageError(f"cannot keep an upload of {total_bytes:,} bytes in {directory}: {reason}") from error
    return np.frombuffer(mapped, np.uint8)
