"""A pacer for tests: its clock goes on when a test says so."""

import itertools
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Agenda:
    """A pacer, and its clock, that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.entries: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def at(self, due: float, call: Callable[..., None], *args: Any) -> None:
        if due != float("inf"):
            heappush(self.entries, (due, next(self._numbers), call, args))

    def begin(self) -> None:
        """Nothing to prepare."""

    def catch_up(self) -> None:
        self.run(self.now)

    def run(self, until: float = 1000.0) -> None:
        while self.entries and self.entries[0][0] <= until:
            due, _, call, args = heappop(self.entries)
            self.now = max(self.now, due)
            call(*args)
