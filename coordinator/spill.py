"""Buffers on the disk for uploads that do not fit in memory."""

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from hypergpu.common.errors import StorageError
from hypergpu.common.tensors import Payload


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
