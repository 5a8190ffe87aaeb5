"""Jobs that are done again and again."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from hypergpu.coordinator.health import Tell

log = structlog.get_logger()


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
