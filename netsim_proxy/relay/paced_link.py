"""A link as the relay uses it: the pieces that it holds back, and the connections on it."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import DIRECTIONS, Blocked, Cause, Deliver, Direction, Fail, LinkRpc
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.backpressure import PATH_BYTES, Backpressure, PausableReader


class Connection(Protocol):
    """A client's connection and its one to the upstream, as a link sees them."""

    number: int

    @property
    def readers(self) -> Sequence["Reader"]:
        """Up and down."""

    def close(self, now: float, reset: bool = False) -> None:
        """End both connections; with `reset` at once, by TCP resets."""

    def close_after_delivery(self, now: float) -> None:
        """End both connections when what is on its way has arrived; nothing more is read."""

    def black_hole(self, now: float) -> None:
        """Let the upstream forget the connection without a word to the client."""


class Reader(PausableReader, Protocol):
    """One direction of a connection: reads from one end what goes to the other."""

    direction: Direction
    index: int

    @property
    def pair(self) -> Connection:
        """The pair of connections that it belongs to."""


_QUEUE_BYTES: Final = 1 << 20
"""Largest queue, unless the profile has another one; also what a path of infinite bandwidth holds."""
_LEAST_WINDOW_BYTES: Final = 16 << 10
_PIECE_SECONDS: Final = 0.005
_PIECE_BYTES: Final = (16 << 10, 256 << 10)

_ENDS_CONNECTION: Final = (Cause.LIMIT_DATA, Cause.LIMIT_TIME)

_Piece = tuple[Reader, int, LinkRpc, bool, Callable[..., None], tuple[Any, ...]]


class PacedLink:
    """One node's link, and the relay's side of it.

    Pairs are of (up, down), as `Direction.ordinal` says.

    Attributes:
        profile_name: the profile that it was given, whatever events make of it.
        transparent: whether the link does nothing at all now, so that frames need not be offered.
        piece_bytes: longer runs are offered in pieces, so that an event acts on the rest of a transfer.
        path_bytes: what the link holds during a round trip, in its faster direction.
        window_bytes: what a writer may have sent that is not read yet: more would only wait.
    """

    def __init__(self, now: float, link: Link, agenda: Agenda, region: str = "") -> None:
        self.link = link
        self.name = link.link_id
        self.region = region
        self.profile_name = link.profile.local_name
        self.pairs: set[Connection] = set()
        self.transparent = False
        self.piece_bytes = [_PIECE_BYTES[1], _PIECE_BYTES[1]]
        self.path_bytes = 0
        self.window_bytes = [math.inf, math.inf]
        self._agenda = agenda
        self._backpressure = tuple(Backpressure(link, direction, agenda) for direction in DIRECTIONS)
        self._held: tuple[deque[_Piece], deque[_Piece]] = (deque(), deque())
        self._next_change = math.inf
        self.changed(now)

    # Traffic

    def offer(  # noqa: PLR0917 - one of the hottest calls: keywords would cost more than they explain
        self,
        now: float,
        reader: Reader,
        nbytes: int,
        link_rpc: LinkRpc,
        end: bool,
        on_verdict: Callable[..., None],
        *args: Any,
        express: bool = False,
    ) -> None:
        """Offer a piece to the link and call `on_verdict(now, verdict, *args)` with its `Deliver` or `Fail`.

        At once, or when the link stops holding: then what comes after in this direction waits too.
        """
        held = self._held[reader.index]
        if not held:
            verdict = self.link.offer(now, reader.direction, nbytes, link_rpc, end=end, express=express)
            if not isinstance(verdict, Blocked):
                self._pass_verdict(now, reader, verdict, on_verdict, args)
                return
            self._retry_at(verdict)
            if verdict.cause is Cause.HALF_OPEN:
                return
        held.append((reader, nbytes, link_rpc, end, on_verdict, args))
        self.begin_transit(now, reader, nbytes)

    def count_passed(self, direction: Direction, nbytes: int) -> None:
        """Count bytes that went straight on, as the link would have: each arrived before the next was offered."""
        counters = self.link.counters(direction)
        counters.bytes += nbytes
        counters.delayed(0.0)

    @property
    def in_flight(self) -> list[int]:
        """Bytes that are held or due later, up and down."""
        return [each.in_flight for each in self._backpressure]

    def begin_transit(self, now: float, reader: Reader, nbytes: int) -> None:
        """Count bytes of `reader` that are on their way; it stops reading if the link takes no more of it."""
        self._backpressure[reader.index].add(now, reader, nbytes)

    def end_transit(self, now: float, reader: Reader, nbytes: int) -> None:
        """Count bytes that have been delivered or dropped."""
        self._backpressure[reader.index].remove(now, reader, nbytes)

    def join(self, now: float, pair: Connection) -> None:
        """Take in a connection that has its first traffic on the link, which knows its number."""
        self.pairs.add(pair)
        if self.link.limits_connections:
            self._close_in_time(now, pair)

    def forget(self, pair: Connection) -> None:
        """Drop what the link holds of a connection that is closed."""
        self.pairs.discard(pair)
        for held, backpressure, reader in zip(self._held, self._backpressure, pair.readers, strict=True):
            backpressure.forget(reader, sum(nbytes for owner, nbytes, *_ in held if owner is reader))
            kept = [piece for piece in held if piece[0] is not reader]
            held.clear()
            held.extend(kept)
        self.link.disconnect(pair.number)

    # Changes

    def changed(self, now: float) -> None:
        """Act on what is on the link now that its profile or events have changed."""
        link = self.link
        self._close_connections(now)
        self.transparent = (
            not link.is_disturbed(now)
            and link.profile.loss == 0
            and all(
                link.bandwidth_mbit(direction) == math.inf and link.latency_bounds_ms(direction) == (0.0, 0.0)
                for direction in DIRECTIONS
            )
        )
        self.path_bytes = 0
        for direction in DIRECTIONS:
            self._resize(direction)
            self._backpressure[direction.ordinal].resume(now)
        if link.next_change != self._next_change:
            self._next_change = link.next_change
            self._agenda.at(link.next_change, self._on_change_due, link.next_change)
        self._offer_held(now)

    def black_hole(self, now: float) -> None:
        """Let the upstream forget all connections that are open: they fall silent, both ways."""
        for pair in list(self.pairs):
            pair.black_hole(now)

    def _close_connections(self, now: float) -> None:
        blocked = self.link.blocked(now)
        if blocked is not None and blocked.reset:
            for pair in list(self.pairs):
                pair.close(now, reset=True)
        for pair in list(self.pairs) if self.link.limits_connections else ():
            self._close_in_time(now, pair)

    def _resize(self, direction: Direction) -> None:
        """Set what may be on its way in a direction by what the link is like now."""
        link, index = self.link, direction.ordinal
        rate = link.bandwidth_mbit(direction) * 125_000
        self.piece_bytes[index] = _within(_PIECE_BYTES, rate * _PIECE_SECONDS)
        if link.limits_connections:
            self.piece_bytes[index] = _PIECE_BYTES[0]  # a piece that is above the limit is dropped as a whole
        in_path = rate * link.latency_bounds_ms(direction)[1] / 1000 if rate < math.inf else _QUEUE_BYTES
        self.path_bytes = max(self.path_bytes, 2 * int(min(in_path, PATH_BYTES)))
        path = (link.profile.up, link.profile.down)[index]
        in_queue = path.queue_bytes or min(path.queue_limit, _QUEUE_BYTES)
        self._backpressure[index].resize(int(min(in_path, PATH_BYTES)), in_queue)
        self.window_bytes[index] = max(link.useful_window_bytes(direction), _LEAST_WINDOW_BYTES)

    def _on_change_due(self, now: float, due: float) -> None:
        if due == self._next_change:
            self._next_change = math.inf
            self.changed(now)

    def _retry_at(self, verdict: Blocked) -> None:
        if verdict.cause is not Cause.HALF_OPEN:  # that is for good, and the connection has been silenced
            self._agenda.at(verdict.until, self._offer_held)

    def _offer_held(self, now: float) -> None:
        for held in self._held:
            self._offer_first_of(now, held)

    def _offer_first_of(self, now: float, held: deque[_Piece]) -> None:
        while held:
            reader, nbytes, link_rpc, end, on_verdict, args = held[0]
            verdict = self.link.offer(now, reader.direction, nbytes, link_rpc, end=end)
            if isinstance(verdict, Blocked) and verdict.cause is not Cause.HALF_OPEN:
                self._retry_at(verdict)
                return
            held.popleft()
            self.end_transit(now, reader, nbytes)
            if not isinstance(verdict, Blocked):
                self._pass_verdict(now, reader, verdict, on_verdict, args)

    def _pass_verdict(
        self,
        now: float,
        reader: Reader,
        verdict: Deliver | Fail,
        on_verdict: Callable[..., None],
        args: tuple[Any, ...],
    ) -> None:
        if isinstance(verdict, Fail) and verdict.cause in _ENDS_CONNECTION:
            reader.pair.close_after_delivery(now)
        elif isinstance(verdict, Fail) and self.link.resets_one_way(reader.direction):
            reader.pair.close(now, reset=True)
        else:
            on_verdict(now, verdict, *args)

    def _close_in_time(self, now: float, pair: Connection) -> None:
        closes_at = self.link.closes_at(pair.number, now)
        if closes_at <= now:
            pair.close(now)
        elif closes_at < math.inf:
            self._agenda.at(closes_at, self._close_if_due, pair)

    def _close_if_due(self, now: float, pair: Connection) -> None:
        if pair in self.pairs and self.link.closes_at(pair.number, now) <= now:
            pair.close(now)


def _within(bounds: tuple[int, int], value: float) -> int:
    return int(min(max(value, bounds[0]), bounds[1]))
