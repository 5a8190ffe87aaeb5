"""Errors that HyperGPU raises. `hypergpu.common.rpc` maps them to gRPC status codes and back.

    HyperGPUError
      InvalidInput             exit code 2
        ConfigError
          RunInUse
          CannotResume
        TlsError
        UnknownName
      NotFound
      OutOfMemory
      ProtocolError
      CorruptData
      NonFiniteUpdate
      NotAuthenticated
        PermissionDenied
      NameInUse
      ForkedLedger
      StaleWork
      Unavailable
      DeadlineExceeded
      ResourceExhausted
      StorageError

A message says what is wrong, where, and what to do; the command line prints nothing else.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Final

_MAX_NAME: Final = 100
_MAX_COMPARED: Final = 1000


class HyperGPUError(Exception):
    """Base of all errors that HyperGPU raises on purpose."""


class InvalidInput(HyperGPUError):
    """An argument that can never work: exit code 2, INVALID_ARGUMENT."""


class ConfigError(InvalidInput):
    """An invalid configuration, profile or scenario."""


class RunInUse(ConfigError):
    """A run directory that another process writes to; carries its path and its holder."""

    def __init__(self, path: Path, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(
            f"the run directory {path} is in use by {holder}; stop that process first, or choose another directory"
        )


class CannotResume(ConfigError):
    """A run that cannot resume: its checkpoints are damaged, or belong to another run."""


class StorageError(HyperGPUError):
    """A file that cannot be written or synced, for example on a full disk; the message names it."""


class TlsError(InvalidInput):
    """A peer whose certificate is not trusted, or TLS on one side only. A retry does not help."""


class UnknownName(InvalidInput):
    """An unknown profile, task, node or key; the message suggests the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        shown = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"
        super().__init__(f"unknown {kind} {shown!r}{suggest(name, self.known)}")


class NotFound(HyperGPUError):
    """A node or link that does not exist now but could: NOT_FOUND."""


class OutOfMemory(HyperGPUError):
    """A batch that does not fit the memory of the card; carries the largest that fits."""

    def __init__(self, message: str, largest_batch: int) -> None:
        self.largest_batch = largest_batch
        super().__init__(message)


class ProtocolError(HyperGPUError):
    """A peer broke the protocol: wrong order, wrong shape, wrong size. Never retried."""


class CorruptData(HyperGPUError):
    """Bytes that do not match their checksum: DATA_LOSS. The sender can send them again."""


class NonFiniteUpdate(HyperGPUError):
    """NaN or infinity in a loss, gradient or update; carries the step that produced it."""

    def __init__(self, message: str, step: int = -1) -> None:
        self.step = step
        super().__init__(message)


class NotAuthenticated(HyperGPUError):
    """A missing or wrong token: UNAUTHENTICATED."""


class PermissionDenied(NotAuthenticated):
    """A known caller that may not do this: PERMISSION_DENIED. Another token or certificate may."""


class NameInUse(HyperGPUError):
    """A node's name that another process has now: ALREADY_EXISTS. It is free when the other one has gone."""


class ForkedLedger(HyperGPUError):
    """A ledger that does not go on from what was seen of it; carries both checkpoints."""

    def __init__(self, message: str, seen: str = "", now: str = "") -> None:
        self.seen, self.now = seen, now
        super().__init__(message)


class StaleWork(HyperGPUError):
    """Work for a run or round that is over: FAILED_PRECONDITION. Pull the current work instead."""


class Unavailable(HyperGPUError):
    """A peer that cannot be reached now; a retry may help."""


class DeadlineExceeded(HyperGPUError):
    """A call that took longer than its timeout."""


class ResourceExhausted(HyperGPUError):
    """A limit was reached: too many nodes, too large a message, too long a queue."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known one and a list."""
    options = sorted(known)
    if not options:
        return ": none are defined"
    # The time of a comparison grows with both lengths: a hostile name or a long list must not take seconds.
    nearest = get_close_matches(name, options[:_MAX_COMPARED], n=1, cutoff=0.5) if len(name) <= _MAX_NAME else []
    listing = ", ".join(options[:12]) + (f" … ({len(options)} in all)" if len(options) > 12 else "")
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"{hint} (known: {listing})"
