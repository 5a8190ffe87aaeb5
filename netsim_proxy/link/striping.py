"""Chunks of a message that several connections of one link share: each takes the next one when it can send."""

from collections.abc import Callable
from typing import Final

from hypergpu.common.tensors import CHUNK_BYTES, STRIPE_BYTES
from hypergpu.netsim_proxy.link.link import FULL_PIECE_BYTES, Link
from hypergpu.netsim_proxy.link.outcomes import Blocked, Deliver, Direction, Fail, LinkRpc, LossModel

LEAST_PIECE_BYTES: Final = 64 << 10
"""Shortest piece that is offered to a link at once, if TCP can use less at a time."""


def longest_piece_bytes(link: Link, direction: Direction, most: int) -> int:
    """Return the bytes to offer to a link at once: what it can use soon, so that events act on the rest."""
    if link.loss_model is LossModel.RPC and not link.shares_access:
        return most
    return int(min(most, max(LEAST_PIECE_BYTES, link.useful_window_bytes(direction))))


class Stripe:
    """Part of one connection in a message.

    Attributes:
        rpc: RPC that carries it.
        chunk_bytes: size of the chunk that the connection took last.
        unsent_bytes: bytes that are still to be offered to the link, as they travel.
    """

    __slots__ = ("chunk_bytes", "rpc", "unsent_bytes")

    def __init__(self, rpc: LinkRpc, unsent_bytes: int = 0) -> None:
        self.rpc = rpc
        self.chunk_bytes = 0
        self.unsent_bytes = unsent_bytes


class SharedMessage:
    """A message in one direction, in chunks of `STRIPE_BYTES`.

    Args:
        link: link of all connections.
        direction: direction of the message.
        nbytes: its size.
        travelling_bytes: returns the size of a chunk as it travels.
    """

    __slots__ = ("_direction", "_link", "_travelling_bytes", "waiting_bytes")

    def __init__(
        self, link: Link, direction: Direction, nbytes: int, travelling_bytes: Callable[[int], int] = int
    ) -> None:
        self._link, self._direction, self._travelling_bytes = link, direction, travelling_bytes
        self.waiting_bytes = nbytes
        """Bytes that no connection has taken."""

    def send(self, now: float, stripe: Stripe) -> Deliver | Fail | Blocked | None:
        """Offer the next piece on a connection that has room; return None if nothing is left for it.

        The whole chunk is sent when the piece is delivered and `stripe.unsent_bytes` is 0.
        """
        if not stripe.chunk_bytes or not stripe.unsent_bytes:
            stripe.chunk_bytes = min(self.waiting_bytes, STRIPE_BYTES)
            if not stripe.chunk_bytes:
                return None
            self.waiting_bytes -= stripe.chunk_bytes
            stripe.unsent_bytes += self._travelling_bytes(stripe.chunk_bytes)
        piece = longest_piece_bytes(self._link, self._direction, CHUNK_BYTES)
        if stripe.unsent_bytes - piece < FULL_PIECE_BYTES:  # a short rest would look like the tail of a message
            piece = stripe.unsent_bytes
        is_last = not self.waiting_bytes and piece == stripe.unsent_bytes
        verdict = self._link.offer(now, self._direction, piece, stripe.rpc, end=is_last)
        if isinstance(verdict, Deliver):
            stripe.unsent_bytes -= piece
        return verdict
