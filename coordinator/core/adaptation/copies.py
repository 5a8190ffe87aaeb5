"""Copies of an adaptation, for runs in virtual time that go on from its present state."""

import io
import pickle
from typing import Any

from hypergpu.common.clock import Clock
from hypergpu.common.errors import InvalidInput
from hypergpu.coordinator.core.adaptation.orchestrator import AdaptiveOrchestrator

_CLOCK = "clock"


def packed(orchestrator: AdaptiveOrchestrator) -> bytes:
    """Return everything that an orchestrator and its parts know, without their clock."""
    buffer = io.BytesIO()
    _Packer(buffer, orchestrator.clock).dump(orchestrator)
    return buffer.getvalue()


def unpacked(data: bytes, clock: Clock) -> AdaptiveOrchestrator:
    """Return a copy of a packed orchestrator with another clock. The data must be of this program.

    Raises:
        InvalidInput: it holds something else.
    """
    found = _Unpacker(io.BytesIO(data), clock).load()
    if not isinstance(found, AdaptiveOrchestrator):
        raise InvalidInput(f"{type(found).__name__} is no orchestrator")
    return found


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, clock: Clock) -> None:
        super().__init__(file)
        self._clock = clock

    def persistent_id(self, obj: Any) -> str | None:
        return _CLOCK if obj is self._clock else None


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, clock: Clock) -> None:
        super().__init__(file)
        self._clock = clock

    def persistent_load(self, pid: Any) -> Clock:
        del pid
        return self._clock
