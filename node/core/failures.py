"""Classification of errors, by their type and the state of the node."""

from enum import StrEnum
from typing import Final

from hypergpu.common.errors import (
    CorruptData,
    DeadlineExceeded,
    ForkedLedger,
    HyperGPUError,
    NameInUse,
    NotAuthenticated,
    NotFound,
    ResourceExhausted,
    StaleWork,
    TlsError,
    Unavailable,
)
from hypergpu.node.core.states import State

RETRYABLE: Final = (Unavailable, DeadlineExceeded, CorruptData, ResourceExhausted, NameInUse)
"""Errors of the network or of a busy coordinator, or a name that is not free yet: the same call may succeed later."""


class Failure(StrEnum):
    """Response of a node to an error."""

    TRANSIENT = "transient"
    """Try again after a backoff."""
    UNKNOWN_NODE = "unknown_node"
    """Register again: the coordinator does not know the node."""
    STALE = "stale"
    """Drop the work and pull: its round is over."""
    BAD_WORK = "bad_work"
    """Return the work with the reason: it cannot be done, or its update is rejected."""
    FATAL = "fatal"
    """Exit: no retry can help."""


def failure_of(error: Exception, state: State, *, has_joined: bool) -> Failure:  # noqa: PLR0911  (one case per error)
    """Classify an error that ended the operation of `state`.

    Args:
        error: what the operation raised.
        state: of the node when it did.
        has_joined: whether the node has completed a registration before.
    """
    match error:
        case _ if state is State.TRAINING:
            return Failure.BAD_WORK  # training makes no call: an Unavailable here comes from the node's own data
        case _ if isinstance(error, RETRYABLE):
            return Failure.TRANSIENT
        case NotAuthenticated() | ForkedLedger():
            return Failure.FATAL
        case TlsError():
            # A handshake that has succeeded before fails while the coordinator's certificate is being replaced.
            return Failure.TRANSIENT if has_joined else Failure.FATAL
        case NotFound():
            return Failure.UNKNOWN_NODE
        case StaleWork():
            # A node that holds no work can only be told that its membership is over.
            return Failure.UNKNOWN_NODE if state is State.IDLE else Failure.STALE
        case _ if type(error) is HyperGPUError:  # the coordinator's INTERNAL
            return Failure.TRANSIENT
    return Failure.FATAL if state in {State.JOINING, State.PREPARING} else Failure.BAD_WORK
