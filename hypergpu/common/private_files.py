"""Files for their user alone, such as keys and tokens."""

import os
from pathlib import Path


def create_private(file: Path, data: bytes, *, mode: int = 0o600, synced: bool = False) -> None:
    """Create a file with its content; nobody else can read it at any time, unless `mode` permits it.

    Args:
        file: path of the new file.
        data: its content.
        mode: permissions, of which the process's mask takes some.
        synced: whether the content is on the disk when this returns.

    Raises:
        FileExistsError: there is a file, or a link, of that name.
        OSError: it cannot be written.
    """
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
        opened.write(data)
        if synced:
            opened.flush()
            os.fsync(opened.fileno())


def read_private(file: Path, most: int) -> bytes:
    """Return the first `most` bytes of a file, which is no link.

    Raises:
        OSError: it cannot be read.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
        return opened.read(most)
