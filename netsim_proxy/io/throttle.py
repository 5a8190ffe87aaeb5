"""Throttle for repeated log lines: clients retry many times a second."""

from typing import Any, Final

import structlog

from hypergpu.common.clock import Clock, monotonic

_PAUSE_SECONDS: Final = 10.0
_MAX_KINDS: Final = 100

log = structlog.get_logger()


class Throttle:
    """Logs each message with the same reason at most once per pause, and how many were left out."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # since when, and how many since

    def warning(self, message: str, reason: str, **fields: Any) -> None:
        """Log a warning, unless the same one was logged recently."""
        now = self._clock()
        since, count = self._seen.get((message, reason), (-_PAUSE_SECONDS, 0))
        if now - since < _PAUSE_SECONDS:
            self._seen[message, reason] = since, count + 1
            return
        if len(self._seen) >= _MAX_KINDS:
            self._seen.clear()
        self._seen[message, reason] = now, 0
        more = {"left_out": count} if count else {}
        log.warning(message, reason=reason, **fields, **more)

    def failure(self, what: str, error: BaseException) -> None:
        """Log that a background task failed."""
        self.warning("a background task failed", f"{type(error).__name__}: {error}", what=what, exc_info=error)
