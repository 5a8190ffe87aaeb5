"""Background work: tasks whose failures are reported, and jobs that run periodically."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

OnFailure = Callable[[str, BaseException], None]
"""Callback with the name of a failed task and its error."""
OnResult = Callable[[str], None]
"""Callback after each run of a periodic task, with an empty text or the error."""


def log_failure(name: str, error: BaseException) -> None:
    """Log a failure with its traceback."""
    log.error("a background task failed", task=name, exc_info=error)


class Background:
    """Tasks that are not awaited; each failure is reported."""

    def __init__(self, on_failure: OnFailure = log_failure) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.watch(name, task)

    def watch(self, name: str, future: "asyncio.Future[Any]") -> None:
        """Report the failure of a future that is not awaited."""

        def report(done: "asyncio.Future[Any]") -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                self._on_failure(name, error)

        future.add_done_callback(report)

    def cancel(self) -> None:
        """Cancel every task."""
        for task in list(self._tasks):
            task.cancel()

    async def settle(self) -> None:
        """Wait until no task is left, including those that tasks start meanwhile."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


class PeriodicTask:
    """Runs `step` periodically, from `start` to `stop`; a failure is logged, and the next run follows.

    Args:
        step: one run.
        interval_seconds: pause from the end of one run to the next; it may be changed at any time.
        on_result: called after each run.
    """

    def __init__(
        self,
        step: Callable[[], Awaitable[None]],
        interval_seconds: float,
        on_result: OnResult = lambda error: None,
    ) -> None:
        self._step, self._on_result = step, on_result
        self.interval_seconds = interval_seconds
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """True if the task is started."""
        return self._task is not None

    def start(self, *, delay_seconds: float = 0.0) -> None:
        """Start with the first run, after a delay. A running task is not changed."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(delay_seconds))

    async def stop(self) -> None:
        """Stop, also in the middle of a run."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        while True:
            try:
                await self._step()
            except Exception as error:
                log.exception("a periodic task failed; it will be tried again", task=self._step.__qualname__)
                self._on_result(f"{type(error).__name__}: {error}")
            else:
                self._on_result("")
            await asyncio.sleep(self.interval_seconds)
