"""File with the secret of a node's lease: its next process shows it, and is let in at once.

The process that uses the file holds a lock on it. Another process of the same name on this machine does not get the
secret while the first one lives, so that the coordinator refuses it.
"""

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

_MAX_BYTES: Final = 1024
_SECRET: Final = re.compile(r"[A-Za-z0-9._-]{1,512}")

log = structlog.get_logger()


def lease_path(directory: Path, coordinator: str, node_id: str) -> Path:
    """Return the path of the file of a node and its coordinator."""
    server = re.sub(r"[^A-Za-z0-9.-]", "_", coordinator)[:120]
    return directory / f"{server}-{node_id}.lease"


class LeaseFile:
    """The secret of a lease, for one process at a time. A file that cannot be used counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def read(self) -> str:
        """Return the secret; empty if there is none, or another process holds it."""
        if not self._lock():
            return ""
        text = os.pread(self._descriptor, _MAX_BYTES, 0).decode("ascii", "replace").strip()
        return text if _SECRET.fullmatch(text) else ""

    def write(self, secret: str) -> None:
        """Keep the secret, unless another process holds the file."""
        if self._lock():
            try:
                os.pwrite(self._descriptor, secret.encode("ascii", "replace"), 0)
                os.ftruncate(self._descriptor, len(secret))
            except OSError as error:
                log.warning("the secret of the lease cannot be kept", file=str(self._path), reason=error.strerror)

    def remove(self) -> None:
        """Remove the file: the lease has ended."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Let another process have the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> bool:
        if self._descriptor >= 0:
            return True
        descriptor = -1
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            log.debug("the lease's file cannot be used", file=str(self._path), reason=error.strerror)
            with suppress(OSError):
                os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True
