"""Work that nobody waits for: each failure is told, none is lost."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

Failed = Callable[[str, BaseException], None]
"""Told what failed, and how."""


def log_failure(what: str, error: BaseException) -> None:
    """Log a failure with its traceback."""
    log.error("a background task failed", what=what, exc_info=error)


class Background:
    """Tasks and calls on threads whose failure must not go unseen."""

    def __init__(self, failed: Failed = log_failure) -> None:
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

    def cancel(self) -> None:
        """Cancel every task."""
        for task in list(self._tasks):
            task.cancel()

    async def settle(self) -> None:
        """Wait until no task is left. What is waited for may begin more."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
