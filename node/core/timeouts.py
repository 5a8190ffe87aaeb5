"""Timeouts of a node's calls."""

from typing import Final

_MIN_HEARTBEAT_TIMEOUT_SECONDS: Final = 5.0
_MIN_PUSH_TIMEOUT_SECONDS: Final = 60.0
_MIN_CHUNK_TIMEOUT_SECONDS: Final = 30.0
_MAX_CHUNK_TIMEOUT_SECONDS: Final = 86_400.0
SHUTDOWN_RPC_TIMEOUT_SECONDS: Final = 2.0
"""Timeout of calls that only inform the coordinator: it notices by itself if they fail, only later."""


def heartbeat_timeout_seconds(period_seconds: float) -> float:
    """Return the timeout of a heartbeat: two periods, at least 5 s."""
    return max(_MIN_HEARTBEAT_TIMEOUT_SECONDS, 2 * period_seconds)


def push_timeout_seconds(deadline_seconds: float) -> float:
    """Return the timeout of a push: twice what was left of the round when its work was assigned, at least 60 s.

    An update that takes longer is late in any case. Keepalive detects a dead connection much sooner.
    """
    return max(_MIN_PUSH_TIMEOUT_SECONDS, 2 * deadline_seconds)


def chunk_timeout_seconds(deadline_seconds: float) -> float:
    """Return the longest wait for the next chunk of parameters: what is left of the round, at least 30 s.

    A chunk of 1 MiB takes longer than that on a link of 200 kbit/s. Keepalive detects a dead connection much sooner.
    """
    return min(max(_MIN_CHUNK_TIMEOUT_SECONDS, deadline_seconds), _MAX_CHUNK_TIMEOUT_SECONDS)
