"""A clock that jumps from event to event, and the calendar of what is due."""

import math
from bisect import insort
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from hypergpu.common.clock import ManualClock

_SLOTS_PER_SECOND: Final = 128
_NEVER: Final = math.inf

Due = tuple[float, int, Callable[..., None], tuple[Any, ...]]


class VirtualTime:
    """Runs calls at the times they are due, in order of time and then of scheduling. Time never goes back.

    Calls are sorted one slot of time after the other: most are far ahead when they are scheduled, and a heap of all of
    them would cost several times as much. `clock` is what the cores are given as their clock; it reads `now`.
    """

    __slots__ = ("_count", "_later", "_slot", "_slots", "_soon", "_stopped", "clock")

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._slot = -1
        self._soon: list[Due] = []  # of this slot or of the past, the next at the end
        self._later: dict[int, list[Due]] = {}  # of the slots after it, in no order
        self._slots: list[int] = []  # a heap of those
        self._count = 0
        self._stopped = False

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock.now

    def at(self, due: float, call: Callable[..., None], *args: Any) -> None:
        """Run `call(*args)` at `due`, or at once where that is past; an infinite time is never."""
        if due < _NEVER:
            self._count = count = self._count + 1
            slot = int(due * _SLOTS_PER_SECOND)
            calls = self._later.get(slot)
            if calls is not None:
                calls.append((due, count, call, args))
            elif slot > self._slot:
                self._later[slot] = [(due, count, call, args)]
                heappush(self._slots, slot)
            else:
                insort(self._soon, (due, count, call, args), key=_latest_first)

    def run(self, until: float = math.inf) -> None:
        """Run what is due up to `until`, or until `stop`; then it is that time, unless it is infinite."""
        clock, soon = self.clock, self._soon
        while True:  # a jump back on a condition would not tell CPython 3.11 that this loop is worth its optimisations
            if self._stopped:
                break
            if not soon:
                if not self._next_slot():
                    break
                soon = self._soon
            due, _, call, args = later = soon.pop()
            if due > until:
                soon.append(later)
                break
            clock.now = due if due > clock.now else clock.now  # a third of what `max` takes
            if args:
                call(*args)
            else:  # most, and several times as fast
                call()
        if not self._stopped and clock.now < until < math.inf:
            clock.now = until

    def stop(self) -> None:
        """Run nothing more."""
        self._stopped = True

    def _next_slot(self) -> bool:
        """Go on to the next slot in which something is due; False if there is none."""
        if not self._slots:
            return False
        self._slot = heappop(self._slots)
        self._soon = self._later.pop(self._slot)
        self._soon.sort(reverse=True)
        return True


def _latest_first(due: Due) -> tuple[float, int]:
    return -due[0], -due[1]
