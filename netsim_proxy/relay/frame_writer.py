"""The writing end of one direction of a connection: writes whole frames, now or when they are due."""

import asyncio
from collections.abc import Callable
from typing import Any

from hypergpu.netsim_proxy.io.pacer import Pacer


class FrameWriter:
    """Where one direction's frames leave.

    A DATA frame may be begun before its end has been read; nothing else is written until `rest` bytes have followed.
    """

    __slots__ = ("_after_rest", "_pacer", "closed", "latest_at", "queued", "rest", "sink")

    def __init__(self, pacer: Pacer) -> None:
        self.sink: asyncio.WriteTransport | None = None
        self.queued = 0  # deliveries that are due later
        self.latest_at = 0.0  # when the last of them is due
        self.rest = 0
        self.closed = False
        self._after_rest: list[bytes] = []
        self._pacer = pacer

    def write(self, data: bytes | memoryview) -> None:
        """Write what follows the bytes before it as it is: frames, or more of the one that was begun."""
        sink = self.sink
        # A transport whose peer has just gone may be closed before it has told us, and uvloop's then refuses to write.
        if sink is not None and not self.closed and not sink.is_closing():
            sink.write(data)

    def send(self, frames: bytes) -> None:
        """Write whole frames as soon as no other frame is half written."""
        if self.rest:
            self._after_rest.append(frames)
        else:
            self.write(frames)

    def take_rest(self, data: bytes) -> tuple[int, bytes]:
        """How many bytes of `data` belong to the frame that was begun, and `data` without what had to be written here.

        Frames that wait for the end of that frame are written right behind it.
        """
        taken = min(self.rest, len(data))
        self.rest -= taken
        if self.rest or not self._after_rest:
            return taken, data
        self.write(data[:taken] + b"".join(self._after_rest))
        self._after_rest.clear()
        return 0, data[taken:]

    def later(self, at: float, call: Callable[..., None], *args: Any) -> None:
        """Call `call(*args)`, which writes, at `at`; what is due at the same time keeps its order."""
        self.queued += 1
        self.latest_at = max(self.latest_at, at)
        self._pacer.at(at, self._due, call, args)

    def _due(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.queued -= 1
        call(*args)
