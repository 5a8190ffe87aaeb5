"""Limits that one peer has announced in its SETTINGS (RFC 9113, section 6.5.2)."""

import math
from typing import Final

from hypergpu.netsim_proxy.link.outcomes import DOWN, Direction
from hypergpu.netsim_proxy.relay import http2

_DEFAULTS: Final[dict[int, float]] = {
    http2.INITIAL_WINDOW_SIZE: 65_535,
    http2.MAX_FRAME_SIZE: http2.DEFAULT_MAX_FRAME_BYTES,
    http2.MAX_HEADER_LIST_SIZE: math.inf,
}


class Limits:
    """Limits that a peer sets for the other; `direction` is that of its SETTINGS."""

    __slots__ = ("_values",)

    def __init__(self, direction: Direction) -> None:
        self._values = dict(_DEFAULTS)
        if direction is DOWN:  # clients open streams
            self._values[http2.MAX_CONCURRENT_STREAMS] = math.inf

    def lowered_by(self, pairs: list[tuple[int, int]]) -> bool:
        """Apply new settings, and return whether a limit is lower than before at any point."""
        lowered = False
        for key, value in pairs:
            if key in self._values:
                lowered |= value < self._values[key]
                self._values[key] = value
        return lowered
