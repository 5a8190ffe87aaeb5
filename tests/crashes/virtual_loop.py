"""An event loop in virtual time: it jumps to what is due next, and work for threads is done in it, one after the other.

With the same seed, the same code does the same things in the same order.
"""

import asyncio
import random
import selectors
from collections.abc import Callable
from typing import Any

SHORTEST, LONGEST = 0.0001, 0.004
"""Seconds that a piece of work for a thread takes."""


class Stuck(Exception):
    """Nothing is due any more, and something is awaited."""


class _NoSockets(selectors.BaseSelector):
    """Selector that lets time pass instead of waiting."""

    def __init__(self) -> None:
        self.pass_time: Callable[[float | None], None] = lambda _: None
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = key = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.pass_time(timeout)
        return []

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop.

    Args:
        seed: Key of the times that work takes.
    """

    def __init__(self, seed: int) -> None:
        selector = _NoSockets()
        super().__init__(selector)
        selector.pass_time = self._pass
        self._now = 0.0
        self._draws = random.Random(seed)
        self._free_at: dict[int, float] = {}
        self.epoch = 0
        """Number of the process: work of an earlier one is not done any more."""
        self.on_error: Callable[[BaseException], bool] = lambda _: False
        """Called with what a piece of work raised; True if it is dealt with."""

    def time(self) -> float:
        return self._now

    def _pass(self, timeout: float | None) -> None:
        if timeout is None:
            raise Stuck
        self._now += timeout

    def _write_to_self(self) -> None:
        """Nothing waits on a socket."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """Do a piece of work when its thread is free; work for one thread is done in order."""
        future: asyncio.Future[Any] = self.create_future()
        key, epoch = id(executor), self.epoch
        begins = max(self._now, self._free_at.get(key, 0.0))
        self._free_at[key] = due = begins + self._draws.uniform(SHORTEST, LONGEST)

        def do() -> None:
            if epoch != self.epoch or future.cancelled():
                return
            try:
                result = func(*args)
            except BaseException as error:
                if not self.on_error(error) and not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_at(due, do)
        return future
