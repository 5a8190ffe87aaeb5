"""Time as a value that is passed in: the cores never read a clock of their own."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds on a scale that never goes back; only differences mean anything."""

monotonic: Clock = time.monotonic
"""The clock of a running service."""

wall: Clock = time.time
"""Seconds since the epoch, for what people write down; it can jump."""


class ManualClock:
    """A clock that moves when told to: for tests, and for virtual time."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The current time in seconds."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` and return the new time.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock does not go back: advance({seconds})")
        self.now += seconds
        return self.now
