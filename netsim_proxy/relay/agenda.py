"""Agenda: effects to carry out now, and calls to make at a time. It reads no clock."""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from hypergpu.netsim_proxy.relay.effects import Effect


class Agenda:
    """Effects and later calls of all connections and links, for the driver.

    Attributes:
        effects: effects that the driver must carry out now, in order; it empties the list.
        traces: whether streams that are part of a trace are reported.
        calls: a heap of the calls to come, the next one first: when it is due, its number, the call and its arguments.
    """

    __slots__ = ("_count", "calls", "effects", "traces")

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.calls: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self.traces = False
        self._count = 0

    def __len__(self) -> int:
        return len(self.calls)

    def at(self, due: float, call: Callable[..., object], *args: Any) -> None:
        """Call `call(now, *args)` at `due` or later; an infinite time is never. Calls due together keep their order."""
        if due != math.inf:
            heappush(self.calls, (due, self._count, call, args))
            self._count += 1

    @property
    def next_at(self) -> float:
        """Time of the next call; infinite if there is none."""
        return self.calls[0][0] if self.calls else math.inf

    def run_next(self, now: float) -> None:
        """Make the next call."""
        _, _, call, args = heappop(self.calls)
        call(now, *args)

    def take_effects(self) -> list[Effect]:
        """Return the effects so far and forget them."""
        effects, self.effects = self.effects, []
        return effects

    def clear(self) -> None:
        """Forget the calls to come."""
        self.calls.clear()
