"""The one tree of errors. `hypergpu.common.rpc` maps it to gRPC status codes and back.

Each message says what is wrong, where, and what would be right; the command line prints it alone.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Final

_MAX_NAME: Final = 100
_MAX_COMPARED: Final = 1000


class HyperGPUError(Exception):
    """Anything that HyperGPU raises on purpose."""


class InvalidInput(HyperGPUError):
    """The caller gave something that can never work: exit code 2, INVALID_ARGUMENT."""


class ConfigError(InvalidInput):
    """A configuration, profile or scenario file that does not hold."""


class RunInUse(ConfigError):
    """A run directory that another process writes to; carries its path and who holds it."""

    def __init__(self, path: Path, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(
            f"the run directory {path} is in use by {holder}; stop that process first, or choose another directory"
        )


class CannotResume(ConfigError):
    """A run that cannot go on from its checkpoints: all are damaged, or they belong to another run."""


class StorageError(HyperGPUError):
    """A file that cannot be written or synced, as on a full disk; the message names it."""


class TlsError(InvalidInput):
    """A peer whose certificate is not trusted, or TLS on one side only. Trying again does not help."""


class UnknownName(InvalidInput):
    """A profile, task, node or key that does not exist; the message names the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        shown = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"
        super().__init__(f"unknown {kind} {shown!r}{suggest(name, self.known)}")


class NotFound(HyperGPUError):
    """A node or link that is not there now, though one like it could be: NOT_FOUND."""


class OutOfMemory(HyperGPUError):
    """A batch that the card cannot hold; carries the largest that fits."""

    def __init__(self, message: str, largest_batch: int) -> None:
        self.largest_batch = largest_batch
        super().__init__(message)


class ProtocolError(HyperGPUError):
    """A peer broke the protocol: wrong order, wrong shape, wrong size. Never retried."""


class CorruptData(HyperGPUError):
    """Bytes that do not match their checksum: DATA_LOSS. The sender may send them again."""


class NonFiniteUpdate(HyperGPUError):
    """NaN or infinity in a loss, gradient or update; carries the step where it was caught."""

    def __init__(self, message: str, step: int = -1) -> None:
        self.step = step
        super().__init__(message)


class NotAuthenticated(HyperGPUError):
    """A missing or wrong join token: UNAUTHENTICATED."""


class StaleWork(HyperGPUError):
    """Work for a run or round that is over: FAILED_PRECONDITION. Fetch the current work instead."""


class Unavailable(HyperGPUError):
    """The other side cannot be reached now; trying again may help."""


class DeadlineExceeded(HyperGPUError):
    """The time that was allowed is over."""


class ResourceExhausted(HyperGPUError):
    """A bound was reached: too many nodes, too large a message, too long a queue."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message that helps with a misspelt `name`."""
    options = sorted(known)
    if not options:
        return ": none is known"
    # Comparing takes time that grows with both: neither a hostile name nor a long list may take seconds.
    nearest = get_close_matches(name, options[:_MAX_COMPARED], n=1, cutoff=0.5) if len(name) <= _MAX_NAME else []
    listing = ", ".join(options[:12]) + (f" … ({len(options)} in all)" if len(options) > 12 else "")
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"{hint} (known: {listing})"
