"""A clock that jumps from event to event, and the heap of what is due."""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from common.clock import ManualClock


class VirtualTime:
    """Runs calls at the times they are due, in order of time and then of scheduling. Time never goes back.

    Attributes:
        clock: what the cores are given as their clock; reads `now`.
        calls: how many calls have been run.
    """

    __slots__ = ("_count", "_heap", "_stopped", "calls", "clock")

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.calls = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._stopped = False

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock.now

    def at(self, due: float, call: Callable[..., None], *args: Any) -> None:
        """Run `call(*args)` at `due`, or at once where that is past; an infinite time is never."""
        if due < math.inf:
            self._count = count = self._count + 1
            heappush(self._heap, (due, count, call, args))

    def run(self, until: float = math.inf) -> None:
        """Run what is due up to `until`, or until `stop`; then it is that time, unless it is infinite."""
        heap, clock = self._heap, self.clock
        calls = 0
        while heap and not self._stopped and heap[0][0] <= until:
            due, _, call, args = heappop(heap)
            clock.now = due if due > clock.now else clock.now  # a third of what `max` takes
            calls += 1
            call(*args)
        self.calls += calls
        if not self._stopped and clock.now < until < math.inf:
            clock.now = until

    def stop(self) -> None:
        """Run nothing more."""
        self._stopped = True
