"""Work that nobody waits for: each failure is told, none is lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from hypergpu.coordinator.health import Tell

log = structlog.get_logger()

Failed = Callable[[str, BaseException], None]
"""Told what failed, and how."""


class Background:
    """Tasks and calls on threads whose failure must not go unseen."""

    def __init__(self, failed: Failed) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, what: str, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task."""
        task = asyncio.get_running_loop().create_task(coroutine, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.watch(what, task)

    def watch(self, what: str, future: "asyncio.Future[Any]") -> None:
        """Tell of the failure of a future that nobody awaits."""

        def done(ended: "asyncio.Future[Any]") -> None:
            error = None if ended.cancelled() else ended.exception()
            if error is not None:
                self._failed(what, error)

        future.add_done_callback(done)

    async def settle(self) -> None:
        """Wait until no task is left. What is waited for may begin more."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


class Repeated:
    """Calls `step` again and again, and survives its failures.

    Args:
        step: what is done each time.
        seconds: from the end of one call to the next.
        tell: told how each call went.
    """

    def __init__(self, step: Callable[[], Awaitable[None]], seconds: float, tell: Tell) -> None:
        self._step, self._seconds, self._tell = step, seconds, tell
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with the first call."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End it, also in the middle of a call."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception as error:
                log.exception("a background job failed; it is tried again", job=self._step.__qualname__)
                self._tell(f"{type(error).__name__}: {error}")
            else:
                self._tell("")
            await asyncio.sleep(self._seconds)
