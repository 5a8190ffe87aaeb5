"""A message that is offered to a link in pieces, as soon as there is room for each."""

from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Deliver, Direction


def sent_in_pieces(link: Link, nbytes: int, piece: int) -> float:
    """Return when the last piece of a message arrives; pieces arrive in order."""
    rpc, now, left, at = link.begin(0.0), 0.0, nbytes, 0.0
    while left:
        size = min(piece, left)
        left -= size
        outcome = link.offer(now, Direction.UP, size, rpc, end=not left)
        assert isinstance(outcome, Deliver)
        assert outcome.at >= at
        at, now = outcome.at, max(now, link.room_at(now, Direction.UP))
    return at
