"""Clocks as values: a core gets the time as an argument and never reads a clock."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Function that returns seconds on a monotonic scale; only differences have a meaning."""

monotonic: Clock = time.monotonic
"""Clock of a running service."""

wall: Clock = time.time
"""Seconds since the epoch, for timestamps that people read; it can jump."""


class ManualClock:
    """Clock that moves only when advanced, for tests and virtual time."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` and return the new time.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back: advance({seconds})")
        self.now += seconds
        return self.now
