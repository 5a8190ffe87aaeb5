"""State of one RPC in the relay."""

import math
from collections import deque
from collections.abc import Sequence

from hypergpu.netsim_proxy.link.outcomes import DIRECTIONS, LinkRpc
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.effects import ReportTransit
from hypergpu.netsim_proxy.relay.paced_link import PacedLink

_Offered = tuple[float, bool] | None
"""Time at which a run was read, and True for the last one of its direction; None for one that does not count."""


class Transit:
    """Way of the two directions of a stream that belongs to a trace: of each, from its first frames to its end."""

    __slots__ = ("_began", "_delay", "_ended", "_nbytes", "_offered", "context")

    def __init__(self, context: str, ended: Sequence[bool]) -> None:
        self.context = context
        # Pairs of (up, down):
        self._ended = list(ended)
        self._began = [math.inf, math.inf]
        self._delay = [0.0, 0.0]
        self._nbytes = [0, 0]
        self._offered: tuple[deque[_Offered], ...] = (deque(), deque())
        """Runs that have not been passed on."""

    def offered(self, index: int, now: float, run: bytes, ended: bool) -> None:
        """Note that a run of frames was read. Before its headers and after its end, a direction only grants room."""
        if self._began[index] == math.inf and run[3] == http2.HEADERS:
            self._began[index] = now
        counts = self._began[index] <= now and not self._ended[index]
        self._nbytes[index] += len(run) if counts else 0
        self._offered[index].append((now, ended) if counts else None)
        self._ended[index] = ended

    def passed(self, connection: int, index: int, at: float, link: str) -> ReportTransit | None:
        """Note when the oldest run is passed on; return the way of the direction if it was the last one."""
        offered = self._offered[index].popleft() if self._offered[index] else None
        if offered is None:
            return None
        offered_at, last = offered
        self._delay[index] = max(self._delay[index], at - offered_at)
        if not last:
            return None
        began, delay, nbytes = self._began[index], self._delay[index], self._nbytes[index]
        return ReportTransit(connection, DIRECTIONS[index], self.context, link, began, at, delay, nbytes)


class Stream:
    """HTTP/2 stream: its link, its ids on both connections, and the state of each direction.

    The upstream's id is given when the request is delivered: HTTP/2 wants streams opened in rising order, and a request
    on a slow link must not hold up one on a fast link.
    """

    __slots__ = (
        "ended",
        "failed",
        "id",
        "link_rpc",
        "lost",
        "opened",
        "paced",
        "ready_at",
        "reset",
        "transit",
        "upstream_id",
    )

    def __init__(self, stream_id: int, paced: PacedLink, link_rpc: LinkRpc) -> None:
        self.id = stream_id
        self.upstream_id = 0
        self.paced = paced
        self.link_rpc = link_rpc
        # Pairs of (up, down):
        self.ready_at = [0.0, 0.0]  # when the last of what was offered is due: nothing overtakes within a stream
        self.opened = [False, False]  # headers have been delivered
        self.ended = [False, False]  # END_STREAM or RST_STREAM has been read
        self.reset = [False, False]  # it was RST_STREAM: its sender discards what comes
        self.transit: Transit | None = None  # of a stream that is part of a trace
        self.lost = False  # the link has lost the RPC: nothing more is offered
        self.failed = False  # and both ends have been told: nothing more is delivered
