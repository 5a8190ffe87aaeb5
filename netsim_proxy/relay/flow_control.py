"""How much a peer may have on its way on a connection: what its reader takes, as far as the link has use for it.

Between a fast peer and a slow link nothing but HTTP/2's window for the connection bounds what the peer's own kernel
takes from it. Readers open it to many times what the link holds, and all that the peer says later, its pings too,
would wait behind that: longer than a keepalive has patience. So what a reader grants beyond the limit is kept back here
until its writer has used what it has.
"""

import math

FIRST_WINDOW_BYTES = 65_535
"""Window of every connection before any update (RFC 9113, section 6.9.2)."""


class WindowLimiter:
    """Window that one peer may still use, at least, and what is kept back.

    Held against its limit is a lower bound of what it may send beyond what was read: every byte that is read counts,
    not only data, and updates that passed unread do not. So a peer that has nothing left is never denied what is there.
    """

    __slots__ = ("_kept", "_left")

    def __init__(self) -> None:
        self._left = FIRST_WINDOW_BYTES
        self._kept = 0

    def increase(self, nbytes: int, limit: float = math.inf) -> int:
        """Return the reader takes so many bytes more; how many of all that are kept may be passed on now."""
        self._kept += nbytes
        return self._pass_on(limit)

    def used(self, nbytes: int, limit: float = math.inf) -> int:
        """Return the peer has sent so many; how many may be passed on now."""
        self._left = max(0, self._left - nbytes)
        return self._pass_on(limit) if self._kept else 0

    def _pass_on(self, limit: float) -> int:
        now = int(min(self._kept, max(0.0, limit - self._left)))
        self._kept -= now
        self._left += now
        return now
