"""Limit on the HTTP/2 window of a peer: as much as its link can use.

Between a fast peer and a slow link, only HTTP/2's window for the connection bounds the data in the peer's own kernel.
Readers open it to many times the capacity of the link. Later frames of the peer, its pings too, would wait behind that
data for longer than keepalives allow. So window updates beyond the limit are kept back until the peer has used its
window.
"""

import math

FIRST_WINDOW_BYTES = 65_535
"""Window of every connection before any update (RFC 9113, section 6.9.2)."""


class WindowLimiter:
    """Lower bound of the window that one peer may still use, and the bytes that are kept back.

    It is a lower bound because every byte that was read counts, not only data, and window updates that passed unread do
    not count. So a peer with an empty window is never denied an update.
    """

    __slots__ = ("_kept", "_left")

    def __init__(self) -> None:
        self._left = FIRST_WINDOW_BYTES
        self._kept = 0

    def increase(self, nbytes: int, limit: float = math.inf) -> int:
        """Add bytes that the reader grants; return how many of those kept back may be passed on now."""
        self._kept += nbytes
        return self._pass_on(limit)

    def used(self, nbytes: int, limit: float = math.inf) -> int:
        """Subtract bytes that the peer has sent; return how many of those kept back may be passed on now."""
        self._left = max(0, self._left - nbytes)
        return self._pass_on(limit) if self._kept else 0

    def _pass_on(self, limit: float) -> int:
        now = int(min(self._kept, max(0.0, limit - self._left)))
        self._kept -= now
        self._left += now
        return now
