"""Retry of calls that fail with transient errors."""

import errno
from collections.abc import Callable
from typing import TypeVar

from hypergpu.common.errors import DeadlineExceeded, Unavailable

Result = TypeVar("Result")

ATTEMPTS = 3
FIRST_WAIT_SECONDS = 0.2
"""Wait before the second attempt; each further one is twice as long."""

_TRANSIENT_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOBUFS,
        errno.ENOTCONN,
        errno.ESTALE,
    }
)
"""Errors of a network, or of a file system on one, during an outage."""


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may help: an unreachable peer, or an outage of a file system."""
    if isinstance(error, (Unavailable, DeadlineExceeded, ConnectionError, TimeoutError, InterruptedError)):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS


def retry(call: Callable[[], Result], sleep: Callable[[float], object], *, attempts: int = ATTEMPTS) -> Result:
    """Return the result of `call`, retried with growing waits while its errors are transient.

    Raises:
        Exception: the first error that is not transient, or that of the last attempt.
    """
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or attempt == attempts - 1:
                raise
        sleep(FIRST_WAIT_SECONDS * 2**attempt)
    raise ValueError(f"attempts must be at least 1, not {attempts}")
