"""A link as the relay uses it: what is held back or queued on it, who waits for it, which connections are on it."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from hypergpu.common.clock import monotonic
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Cause, Deliver, Direction, Exchange, Fail, Hold


class Connection(Protocol):
    """A client's connection and its one to the upstream, as a link sees them."""

    number: int
    closed: bool

    @property
    def lanes(self) -> Sequence["Reader"]:
        """Up and down."""

    def close(self, reset: bool = False) -> None:
        """End both connections; with `reset` at once, by TCP resets."""

    def close_after_delivery(self) -> None:
        """End both connections when what is on its way has arrived; nothing more is read."""

    def fall_silent(self) -> None:
        """The upstream forgets the connection, and the client is not told."""


class Reader(Protocol):
    """One direction of a connection: reads from one end what goes to the other."""

    way: int

    @property
    def relay(self) -> Connection:
        """What it belongs to."""

    def hold(self, reason: object) -> None:
        """Stop reading until every reason is released."""

    def release(self, reason: object) -> None:
        """Read on, unless there are other reasons not to."""


UP: Final = 0
DOWN: Final = 1
DIRECTIONS: Final = (Direction.UP, Direction.DOWN)

_PATH_BYTES: Final = 32 << 20
_QUEUE_BYTES: Final = 1 << 20
"""What may be on its way on a link in one direction before its writers have to wait: as much as its bandwidth puts into
its latency, up to the first, and in its queue, up to the second where the profile names no other bound."""
_LEAST_WINDOW_BYTES: Final = 16 << 10
_PIECE_SECONDS: Final = 0.005
_PIECE_BYTES: Final = (16 << 10, 256 << 10)

_ENDS_CONNECTION: Final = (Cause.LIMIT_DATA, Cause.LIMIT_TIME)

_Piece = tuple[Reader, int, Exchange, bool, Callable[..., None], tuple[Any, ...]]


class PacedLink:
    """One node's link, and the relay's side of it. All methods are called in the event loop."""

    def __init__(self, link: Link, pacer: Pacer, region: str = "") -> None:
        self.link = link
        self.name = link.link_id
        self.region = region
        self.profile_name = link.profile.local_name
        """The profile that it was given, whatever events make of it."""
        self.relays: set[Connection] = set()
        self.transparent = False
        """Whether the link does nothing at all now, so that frames need not be offered."""
        self.piece_bytes = [_PIECE_BYTES[1], _PIECE_BYTES[1]]
        """Longer runs are offered in pieces, so that an event acts on the rest of a transfer."""
        self.path_bytes = 0
        """What the link holds during a round trip, in its faster direction."""
        self.window_bytes = [math.inf, math.inf]
        """What a writer may have sent that is not read yet: more would only wait."""
        self.in_flight = [0, 0]
        """Bytes that are held or due later, up and down."""
        self._full_at = [0, 0]  # bytes in flight at which reading stops
        self._room_below = [0, 0]  # and goes on: with enough in the queue to keep the link busy until then
        self._pacer = pacer
        self._held: tuple[deque[_Piece], deque[_Piece]] = (deque(), deque())
        self._waiting: tuple[set[Reader], set[Reader]] = (set(), set())
        self._room_at = [0.0, 0.0]
        self._next_change = math.inf
        self.changed()

    # Traffic

    def offer(
        self,
        lane: Reader,
        nbytes: int,
        exchange: Exchange,
        end: bool,
        settle: Callable[..., None],
        *args: Any,
        express: bool = False,
    ) -> None:
        """Offer a piece to the link and call `settle(verdict, *args)` with its `Deliver` or `Fail`.

        At once, or when the link stops holding: then what comes after in this direction waits too.
        """
        if not self._held[lane.way]:
            verdict = self.link.offer(monotonic(), DIRECTIONS[lane.way], nbytes, exchange, end=end, express=express)
            if not isinstance(verdict, Hold):
                self._settle(lane, verdict, settle, args)
                return
            self._retry_at(verdict)
            if verdict.cause is Cause.HALF_OPEN:
                return
        self._held[lane.way].append((lane, nbytes, exchange, end, settle, args))
        self.enter(lane, nbytes)

    def passed(self, way: int, nbytes: int) -> None:
        """Count bytes that went straight on, as the link would have: each arrived before the next was offered."""
        counters = self.link.counters(DIRECTIONS[way])
        counters.bytes += nbytes
        counters.delayed(0.0)

    def enter(self, lane: Reader, nbytes: int) -> None:
        """Bytes of `lane` are on their way; it reads no more while the link's queue is full."""
        way = lane.way
        self.in_flight[way] += nbytes
        if lane not in self._waiting[way]:
            now = monotonic()
            if self.in_flight[way] > self._full_at[way] or self.link.room_at(now, DIRECTIONS[way]) > now:
                self._waiting[way].add(lane)
                lane.hold(self)
                self._let_in(way)

    def leave(self, lane: Reader, nbytes: int) -> None:
        """They have been delivered."""
        self.in_flight[lane.way] -= nbytes
        if self._waiting[lane.way]:
            self._let_in(lane.way)

    def join(self, relay: Connection) -> None:
        """A connection has its first traffic on the link, which knows its number."""
        self.relays.add(relay)
        if self.link.limits_connections:
            self._close_in_time(relay)

    def forget(self, relay: Connection) -> None:
        """A connection is closed; what the link holds of it is dropped."""
        self.relays.discard(relay)
        for way, held in enumerate(self._held):
            kept = [piece for piece in held if piece[0].relay is not relay]
            self.in_flight[way] -= sum(piece[1] for piece in held) - sum(piece[1] for piece in kept)
            held.clear()
            held.extend(kept)
        for waiting in self._waiting:
            waiting.difference_update(relay.lanes)
        self.link.disconnect(relay.number)

    # Changes

    def changed(self) -> None:
        """The link's profile or events have changed: act on what is on it now."""
        now = monotonic()
        link = self.link
        blocked = link.blocked(now)
        if blocked is not None and blocked.reset:
            for relay in list(self.relays):
                relay.close(reset=True)
        for relay in list(self.relays) if link.limits_connections else ():
            self._close_in_time(relay)
        self.transparent = (
            not link.is_disturbed(now)
            and link.profile.loss == 0
            and all(
                link.bandwidth_mbit(direction) == math.inf and link.latency_bounds_ms(direction) == (0.0, 0.0)
                for direction in DIRECTIONS
            )
        )
        if not self.transparent:
            self._pacer.begin()
        self.path_bytes = 0
        for way, direction in enumerate(DIRECTIONS):
            rate = link.bandwidth_mbit(direction) * 125_000
            self.piece_bytes[way] = _within(_PIECE_BYTES, rate * _PIECE_SECONDS)
            if link.limits_connections:
                self.piece_bytes[way] = _PIECE_BYTES[0]  # a piece that is above the limit is dropped as a whole
            in_path = rate * link.latency_bounds_ms(direction)[1] / 1000 if rate < math.inf else _QUEUE_BYTES
            self.path_bytes = max(self.path_bytes, 2 * int(min(in_path, _PATH_BYTES)))
            path = (link.profile.up, link.profile.down)[way]
            in_queue = path.queue_bytes or min(path.queue_limit, _QUEUE_BYTES)
            self._full_at[way] = int(min(in_path, _PATH_BYTES)) + in_queue
            self._room_below[way] = self._full_at[way] - in_queue // 2
            self.window_bytes[way] = max(link.appetite_bytes(direction), _LEAST_WINDOW_BYTES)
            self._let_in(way)
        if link.next_change != self._next_change:
            self._next_change = link.next_change
            self._pacer.at(link.next_change, self._turn, link.next_change)
        self._offer_held()

    def half_open(self) -> None:
        """The upstream has forgotten all connections that there are: they fall silent, both ways."""
        for relay in list(self.relays):
            relay.fall_silent()

    def _turn(self, due: float) -> None:
        if due == self._next_change:
            self._next_change = math.inf
            self.changed()

    def _retry_at(self, verdict: Hold) -> None:
        if verdict.cause is not Cause.HALF_OPEN:  # that is for good, and the connection has been silenced
            self._pacer.at(verdict.until, self._offer_held)

    def _offer_held(self) -> None:
        for held in self._held:
            self._offer_first_of(held)

    def _offer_first_of(self, held: deque[_Piece]) -> None:
        while held:
            lane, nbytes, exchange, end, settle, args = held[0]
            verdict = self.link.offer(monotonic(), DIRECTIONS[lane.way], nbytes, exchange, end=end)
            if isinstance(verdict, Hold) and verdict.cause is not Cause.HALF_OPEN:
                self._retry_at(verdict)
                return
            held.popleft()
            self.leave(lane, nbytes)
            if not isinstance(verdict, Hold):
                self._settle(lane, verdict, settle, args)

    def _settle(
        self, lane: Reader, verdict: Deliver | Fail, settle: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        if isinstance(verdict, Fail) and verdict.cause in _ENDS_CONNECTION:
            lane.relay.close_after_delivery()
        elif isinstance(verdict, Fail) and self.link.resets_one_way(DIRECTIONS[lane.way]):
            lane.relay.close(reset=True)
        else:
            settle(verdict, *args)

    def _close_in_time(self, relay: Connection) -> None:
        now = monotonic()
        closes_at = self.link.closes_at(relay.number, now)
        if closes_at <= now:
            relay.close()
        elif closes_at < math.inf:
            self._pacer.at(closes_at, self._close_if_due, relay)

    def _close_if_due(self, relay: Connection) -> None:
        if relay in self.relays:
            now = monotonic()
            if self.link.closes_at(relay.number, now) <= now:
                relay.close()

    def _let_in(self, way: int) -> None:
        """Let the lanes that wait read on, or look again when there is room."""
        now = monotonic()
        room_at = self.link.room_at(now, DIRECTIONS[way])
        if room_at > now:
            if self._room_at[way] <= now:
                self._room_at[way] = room_at
                self._pacer.at(room_at, self._let_in, way)
        elif self.in_flight[way] <= self._room_below[way]:
            for lane in tuple(self._waiting[way]):
                self._waiting[way].discard(lane)
                lane.release(self)


def _within(bounds: tuple[int, int], value: float) -> int:
    return int(min(max(value, bounds[0]), bounds[1]))
