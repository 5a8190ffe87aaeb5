"""Gains of updates on held-out data: the loss before an update, less the loss after a step of it alone."""

from collections.abc import Callable
from typing import Final

from hypergpu.common.clock import Clock
from hypergpu.common.tensors import Flat, Payload
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds.events import GainMeasured, UpdateArrived

LARGEST_SHARE: Final = 0.05
"""Share of the time since the first measurement that measurements may take: the thread adds updates and steps too."""


class Gains:
    """Measures gains, in a bounded share of the time; `measure` runs on the compute thread.

    Args:
        model: Global model.
        loss_of: Returns the loss of parameters on held-out data.
        clock: Clock of the budget.
    """

    def __init__(self, model: GlobalModel, loss_of: Callable[[Flat], float], clock: Clock) -> None:
        self._model, self._loss_of, self._clock = model, loss_of, clock
        self._began_at: float | None = None
        self._spent = 0.0
        self._before: tuple[int, float] = (0, 0.0)
        """Round whose loss was evaluated last, and that loss."""

    @property
    def has_time(self) -> bool:
        """True if another measurement is within the budget."""
        if self._began_at is None:
            self._began_at = self._clock()
        return self._spent <= LARGEST_SHARE * (self._clock() - self._began_at)

    def measure(self, event: UpdateArrived, payload: Payload) -> GainMeasured | None:
        """Return the gain of an update of the open round; None if there is no time for it."""
        if not self.has_time:
            return None
        began_at = self._clock()
        if self._before[0] != event.round:
            self._before = event.round, self._loss_of(self._model.values)
        after = self._loss_of(self._model.with_update(payload, event.codec, event.round))
        self._spent += self._clock() - began_at
        return GainMeasured(event.node, event.round, self._before[1], after)
