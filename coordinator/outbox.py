"""Effects of decisions, in order; while a closed round is not on the disk yet, nobody is told of anything after it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hypergpu.coordinator.core.rounds.events import Effect

if TYPE_CHECKING:
    from collections.abc import Iterator


class Outbox:
    """Carries effects out at once, or when what holds them back is done.

    Args:
        carry_out: Carries an effect out; it raises nothing.
    """

    def __init__(self, carry_out: Callable[[Effect], None]) -> None:
        self._carry_out = carry_out
        self._held: list[Effect] = []
        self._open = asyncio.Event()
        self._open.set()

    @property
    def is_held(self) -> bool:
        """True while effects wait."""
        return not self._open.is_set()

    async def opened(self) -> None:
        """Wait until no effects wait."""
        await self._open.wait()

    def put(self, effects: Sequence[Effect]) -> None:
        """Carry effects out, after those that wait."""
        if self.is_held:
            self._held += effects
            return
        for effect in effects:
            self._carry_out(effect)

    @contextmanager
    def held(self) -> "Iterator[None]":
        """Hold effects back inside the context, and carry them out when it ends, whatever happened there."""
        self._open.clear()
        try:
            yield
        finally:
            waiting, self._held = self._held, []
            self._open.set()
            self.put(waiting)
