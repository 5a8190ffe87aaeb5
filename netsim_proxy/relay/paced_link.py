"""Link of the relay: a link model, the pieces that it holds back, and the connections on it."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import DIRECTIONS, Blocked, Cause, Deliver, Direction, Fail, LinkRpc
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.backpressure import PATH_BYTES, Backpressure, PausableReader


class Connection(Protocol):
    """Interface of a pair of connections for a link."""

    number: int
    closed: bool

    @property
    def readers(self) -> Sequence["Reader"]:
        """Readers, up and down."""

    def close(self, now: float, reset: bool = False) -> None:
        """End both connections; with `reset` at once, by TCP resets."""

    def close_after_delivery(self, now: float) -> None:
        """End both connections when the data on its way has arrived; read nothing more."""

    def black_hole(self, now: float) -> None:
        """Reset the connection to the upstream without telling the client."""


class Reader(PausableReader, Protocol):
    """Interface of the reader of one direction of a connection."""

    direction: Direction
    index: int

    @property
    def pair(self) -> Connection:
        """Its pair of connections."""


_QUEUE_BYTES: Final = 1 << 20
"""Largest queue, unless the profile has another one; also the capacity of a path of infinite bandwidth."""
_LEAST_WINDOW_BYTES: Final = 16 << 10
_PIECE_SECONDS: Final = 0.005
_PIECE_BYTES: Final = (16 << 10, 256 << 10)

_ENDS_CONNECTION: Final = (Cause.LIMIT_DATA, Cause.LIMIT_TIME)

_Piece = tuple[Reader, int, LinkRpc, bool, Callable[..., None], tuple[Any, ...]]


class PacedLink:
    """Link of one node, and its use by the relay.

    Pairs are of (up, down), as `Direction.ordinal` says.

    Attributes:
        profile_name: name of the profile that was set, regardless of events.
        transparent: whether the link has no effect now, so that frames need not be offered.
        piece_bytes: longer runs are offered in pieces, so that an event acts on the rest of a transfer.
        path_bytes: bandwidth × round trip, in the faster direction.
        window_bytes: largest number of bytes that a writer may have sent and the relay not read; more would only wait.
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

        That is now or, with all later pieces of this direction, when the link is no longer blocked. The link holds
        nothing of a closed connection.
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
        if reader.pair.closed:
            return
        held.append((reader, nbytes, link_rpc, end, on_verdict, args))
        self.begin_transit(now, reader, nbytes)

    def window(self, direction: Direction) -> float:
        """Return `window_bytes`, or what a connection's share of the access link can use now if that is less."""
        shared = self.link.shared_window_bytes(direction)
        return min(self.window_bytes[direction.ordinal], max(shared, _LEAST_WINDOW_BYTES))

    def count_passed(self, direction: Direction, nbytes: int) -> None:
        """Count bytes that passed without an offer, as the link would have counted them."""
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
        """Add a connection with its first traffic on the link."""
        self.pairs.add(pair)
        if self.link.limits_connections:
            self._close_in_time(now, pair)

    def forget(self, pair: Connection) -> None:
        """Drop the pieces and the state of a closed connection."""
        self.pairs.discard(pair)
        for held, backpressure, reader in zip(self._held, self._backpressure, pair.readers, strict=True):
            backpressure.forget(reader, sum(nbytes for owner, nbytes, *_ in held if owner is reader))
            kept = [piece for piece in held if piece[0] is not reader]
            held.clear()
            held.extend(kept)
        self.link.disconnect(pair.number)

    # Changes

    def changed(self, now: float) -> None:
        """Apply a change of the profile or the events to the connections and pieces on the link."""
        link = self.link
        self._close_connections(now)
        self.transparent = (
            not link.is_disturbed(now)
            and not link.shares_access
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
        """Reset all open connections to the upstream without telling their clients."""
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
        """Set the limits of a direction by its current bandwidth and latency."""
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
