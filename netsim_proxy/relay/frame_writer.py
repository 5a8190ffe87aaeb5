"""Writer of one direction of a connection: writes whole frames, now or when they are due."""

from collections.abc import Callable
from typing import Any

from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.effects import Write


class FrameWriter:
    """Writer of one direction's frames.

    A DATA frame may be begun before its end has been read; nothing else is written until `rest_bytes` have followed.

    Attributes:
        queued: number of deliveries that are due later.
        latest_at: time at which the last of them is due.
    """

    __slots__ = ("_after_rest", "_agenda", "_connection", "_direction", "closed", "latest_at", "queued", "rest_bytes")

    def __init__(self, agenda: Agenda, connection: int, direction: Direction) -> None:
        self.queued = 0
        self.latest_at = 0.0
        self.rest_bytes = 0
        self.closed = False
        self._after_rest: list[bytes] = []
        self._agenda, self._connection, self._direction = agenda, connection, direction

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes as they are: frames, or the continuation of a begun frame."""
        if not self.closed:
            self._agenda.effects.append(Write(self._connection, self._direction, data))

    def send(self, frames: bytes) -> None:
        """Write whole frames when no other frame is half written."""
        if self.rest_bytes:
            self._after_rest.append(frames)
        else:
            self.write(frames)

    def take_rest(self, data: bytes) -> tuple[int, bytes]:
        """Return the bytes of `data` that belong to the begun frame, and the data that is still to be written.

        Frames that wait for the end of that frame are written right behind it.
        """
        taken = min(self.rest_bytes, len(data))
        self.rest_bytes -= taken
        if self.rest_bytes or not self._after_rest:
            return taken, data
        self.write(data[:taken] + b"".join(self._after_rest))
        self._after_rest.clear()
        return 0, data[taken:]

    def later(self, at: float, call: Callable[..., None], *args: Any) -> None:
        """Call `call(now, *args)`, which writes, at `at`; calls that are due at the same time keep their order."""
        self.queued += 1
        self.latest_at = max(self.latest_at, at)
        self._agenda.at(at, self._on_due, call, args)

    def _on_due(self, now: float, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.queued -= 1
        call(now, *args)
