"""Exclusive use of a run directory: two writers would mix their rounds and checkpoints."""

import errno
import fcntl
import os
import re
import socket
import weakref
from pathlib import Path

import structlog

from hypergpu.common.errors import ConfigError, RunInUse

LOCK_FILE = ".lock"
_HOLDER = re.compile(r"(\d{1,10}) ([\w.-]{1,255})\n")
_NOT_SUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

log = structlog.get_logger()


class RunLock:
    """Lock on a run directory, held until `release` or the end of the process.

    The directory is made where there is none. The lock file stays: removing it would let two processes hold two files.

    Raises:
        RunInUse: another process, or another object of this one, holds the lock.
        ConfigError: the directory cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot write the run to {path}: {error.strerror}") from error
        try:
            _lock(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        self._release = weakref.finalize(self, _unlock, descriptor)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock. Calling it again has no effect."""
        self._release()


def is_written(path: Path) -> bool:
    """Return whether a process writes to a run directory, as far as its lock file tells; the lock is not touched."""
    try:
        with (path / LOCK_FILE).open("rb") as file:
            named = _HOLDER.fullmatch(file.read(512).decode("utf-8", errors="replace"))
        if named is None:
            return False
        if named[2] == socket.gethostname():
            os.kill(int(named[1]), 0)
    except PermissionError:  # the process is another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunInUse(path, _holder(descriptor)) from error
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise ConfigError(f"cannot lock the run directory {path}: {error.strerror}") from error
        log.warning("this file system has no locks: let only one process write to the run", path=str(path))
        return
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except OSError:
        log.warning("the lock file cannot be written: the lock is held, without a name", path=str(path))


def _unlock(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
    except OSError:
        pass  # closing releases the lock; the text is for people
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Return who holds the lock, in words."""
    text = os.pread(descriptor, 512, 0).decode("utf-8", errors="replace")
    named = _HOLDER.fullmatch(text)
    if named is None:
        return "another process"
    pid, host = named.groups()
    return f"process {pid}" + ("" if host == socket.gethostname() else f" on {host}")
