"""State of one RPC in the relay."""

from hypergpu.netsim_proxy.link.outcomes import LinkRpc
from hypergpu.netsim_proxy.relay.paced_link import PacedLink


class Stream:
    """HTTP/2 stream: its link, its ids on both connections, and the state of each direction.

    The upstream's id is given when the request is delivered: HTTP/2 wants streams opened in rising order, and a request
    on a slow link must not hold up one on a fast link.
    """

    __slots__ = ("ended", "failed", "id", "link_rpc", "lost", "opened", "paced", "ready_at", "reset", "upstream_id")

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
        self.lost = False  # the link has lost the RPC: nothing more is offered
        self.failed = False  # and both ends have been told: nothing more is delivered
