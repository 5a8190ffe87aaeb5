"""How long tests wait for what must come: as long as a quiet machine may need, times how busy this one is.

A test waits for an event and never for a time: patience only bounds how long a failure takes. HYPERGPU_TEST_PATIENCE
sets the factor where the load does not tell it, as under an emulator or a debugger.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Value = TypeVar("Value")
USUAL_SECONDS = 90.0
"""For processes to start, import torch and train a few rounds; a quiet machine needs a tenth of it."""
_MOST = 10.0
"""A test that waits ten times as long has failed, whatever the load."""


def factor() -> float:
    """Return how many times longer than on a quiet machine something may take now."""
    told = os.environ.get("HYPERGPU_TEST_PATIENCE")
    if told:
        return max(1.0, float(told))
    # The load is a mean over a minute: twice its share, for what has only just begun to run beside us.
    return min(_MOST, max(1.0, 2.0 * os.getloadavg()[0] / (os.cpu_count() or 1)))


def patience(seconds: float = USUAL_SECONDS) -> float:
    """Return the longest wait for what takes `seconds` at most on a quiet machine."""
    return seconds * factor()


class Wait:
    """A wait whose end moves with the load."""

    def __init__(self, what: str, seconds: float = USUAL_SECONDS) -> None:
        self._what, self._seconds = what, seconds
        self._began = time.monotonic()
        self._longest = patience(seconds)

    def check(self, more: Callable[[], str] = str) -> None:
        """Fail when it has taken too long; `more` tells what is known."""
        waited = time.monotonic() - self._began
        if waited >= self._longest:
            self._longest = max(self._longest, patience(self._seconds))  # the machine has become busier since
        if waited >= self._longest:
            raise AssertionError(f"not within {waited:.0f} s: {self._what} {more()}")


def until(
    condition: Callable[[], Value],
    what: str,
    seconds: float = USUAL_SECONDS,
    *,
    more: Callable[[], str] = str,
    every: float = 0.02,
) -> Value:
    """Poll until `condition` gives something true; return that."""
    wait = Wait(what, seconds)
    while not (value := condition()):
        wait.check(more)
        time.sleep(every)
    return value


async def until_async(
    condition: Callable[[], Awaitable[Value]],
    what: str,
    seconds: float = USUAL_SECONDS,
    *,
    more: Callable[[], str] = str,
    every: float = 0.05,
) -> Value:
    """Poll as `until` does, and let the loop run."""
    wait = Wait(what, seconds)
    while not (value := await condition()):
        wait.check(more)
        await asyncio.sleep(every)
    return value
