"""A link as the relay uses it: what is held back or queued on it, who waits for it, which connections are on it."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import DIRECTIONS, Blocked, Cause, Deliver, Direction, Fail, LinkRpc, LossModel
from hypergpu.netsim_proxy.relay.agenda import Agenda


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


class Reader(Protocol):
    """One direction of a connection: reads from one end what goes to the other."""

    direction: Direction
    index: int

    @property
    def pair(self) -> Connection:
        """The pair of connections that it belongs to."""

    def hold(self, reason: object) -> None:
        """Stop reading until every reason is released."""

    def release(self, reason: object) -> None:
        """Read on, unless there are other reasons not to."""


_PATH_BYTES: Final = 32 << 20
_QUEUE_BYTES: Final = 1 << 20
"""Bounds of what may be under way in one direction of a link before its writers wait: bandwidth × latency up to the
first, and the queue up to the second unless the profile names another bound."""
_SHARED_BYTES: Final = _PATH_BYTES
"""Bytes in flight from which on all connections of a link wait for each other, whatever TCP allows each."""
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
        in_flight: bytes that are held or due later.
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
        self.in_flight = [0, 0]
        self._full_at = [0, 0]  # bytes in flight at which reading stops
        self._room_below = [0, 0]  # and goes on: with enough in the queue to keep the link busy until then
        self._agenda = agenda
        self._held: tuple[deque[_Piece], deque[_Piece]] = (deque(), deque())
        self._waiting: tuple[dict[Reader, None], dict[Reader, None]] = ({}, {})  # in the order in which they stopped
        self._by_reader: tuple[dict[Reader, int], dict[Reader, int]] = ({}, {})  # bytes in flight of each
        self._room_at = [0.0, 0.0]
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

    def begin_transit(self, now: float, reader: Reader, nbytes: int) -> None:
        """Count bytes of `reader` that are on their way; it reads no more while the link takes no more of it."""
        index = reader.index
        self.in_flight[index] += nbytes
        by_reader = self._by_reader[index]
        by_reader[reader] = by_reader.get(reader, 0) + nbytes
        if reader not in self._waiting[index]:
            is_full = self._queued(reader) > self._full_at[index]
            if is_full or self.link.room_at(now, reader.direction, reader.pair.number) > now:
                self._waiting[index][reader] = None
                reader.hold(self)
                self._resume_readers(now, reader.direction)

    def end_transit(self, now: float, reader: Reader, nbytes: int) -> None:
        """Count bytes that have been delivered or dropped."""
        index = reader.index
        self._take_from_flight(reader, nbytes)
        if self._waiting[index]:
            self._resume_readers(now, reader.direction)

    def join(self, now: float, pair: Connection) -> None:
        """Take in a connection that has its first traffic on the link, which knows its number."""
        self.pairs.add(pair)
        if self.link.limits_connections:
            self._close_in_time(now, pair)

    def forget(self, pair: Connection) -> None:
        """Drop what the link holds of a connection that is closed."""
        self.pairs.discard(pair)
        for index, held in enumerate(self._held):
            kept = [piece for piece in held if piece[0].pair is not pair]
            for reader, nbytes, *_ in held:
                if reader.pair is pair:
                    self._take_from_flight(reader, nbytes)
            held.clear()
            held.extend(kept)
            for reader in pair.readers:
                self._waiting[index].pop(reader, None)
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
            self._resume_readers(now, direction)
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
        self.path_bytes = max(self.path_bytes, 2 * int(min(in_path, _PATH_BYTES)))
        path = (link.profile.up, link.profile.down)[index]
        in_queue = path.queue_bytes or min(path.queue_limit, _QUEUE_BYTES)
        self._full_at[index] = int(min(in_path, _PATH_BYTES)) + in_queue
        self._room_below[index] = self._full_at[index] - in_queue // 2
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

    def _resume_readers(self, now: float, direction: Direction) -> None:
        """Let the readers that wait read on if there is room for them, or look again when there may be."""
        index = direction.ordinal
        next_room = math.inf
        for reader in tuple(self._waiting[index]):
            room_at = self.link.room_at(now, direction, reader.pair.number)
            if room_at > now:
                next_room = min(next_room, room_at)
            elif self._queued(reader) <= self._room_below[index]:
                del self._waiting[index][reader]
                reader.release(self)
        if next_room < math.inf and not now < self._room_at[index] <= next_room:
            self._room_at[index] = next_room
            self._agenda.at(next_room, self._resume_readers, direction)

    def _queued(self, reader: Reader) -> int:
        """Return the bytes in flight that keep `reader` waiting: its own under TCP, or else all of the queue."""
        index = reader.index
        if self.link.loss_model is LossModel.RPC or self.in_flight[index] > _SHARED_BYTES:
            return self.in_flight[index]
        return self._by_reader[index].get(reader, 0)

    def _take_from_flight(self, reader: Reader, nbytes: int) -> None:
        index = reader.index
        self.in_flight[index] -= nbytes
        by_reader = self._by_reader[index]
        left = by_reader[reader] - nbytes
        if left:
            by_reader[reader] = left
        else:
            del by_reader[reader]


def _within(bounds: tuple[int, int], value: float) -> int:
    return int(min(max(value, bounds[0]), bounds[1]))
