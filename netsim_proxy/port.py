"""A link as the relay uses it: what is held back or queued on it, who waits for it, which connections are on it."""

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from common.clock import monotonic
from netsim_proxy.link.link import Link
from netsim_proxy.link.outcomes import Cause, Direction, Exchange, Hold
from netsim_proxy.pacer import Pacer

if TYPE_CHECKING:
    from netsim_proxy.lane import Lane
    from netsim_proxy.relay import Relay

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

_Piece = tuple["Lane", int, Exchange, bool, Callable[..., None], tuple[Any, ...]]


class Port:
    """One node's link, and the relay's side of it. All methods are called in the event loop."""

    def __init__(self, link: Link, pacer: Pacer, region: str = "") -> None:
        self.link = link
        self.name = link.link_id
        self.region = region
        self.relays: set[Relay] = set()
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
        self._held: deque[_Piece] = deque()
        self._waiting: tuple[set[Lane], set[Lane]] = (set(), set())
        self._room_at = [0.0, 0.0]
        self._next_change = math.inf
        self.changed()

    # Traffic

    def offer(
        self,
        lane: "Lane",
        nbytes: int,
        exchange: Exchange,
        end: bool,
        settle: Callable[..., None],
        *args: Any,
        express: bool = False,
    ) -> None:
        """Offer a piece to the link and call `settle(verdict, *args)` with its `Deliver` or `Fail`.

        At once, or when the link stops holding: then what comes after on this link waits too.
        """
        if not self._held:
            verdict = self.link.offer(monotonic(), DIRECTIONS[lane.way], nbytes, exchange, end=end, express=express)
            if not isinstance(verdict, Hold):
                settle(verdict, *args)
                return
            self._retry_at(verdict)
            if verdict.cause is Cause.HALF_OPEN:
                return
        self._held.append((lane, nbytes, exchange, end, settle, args))
        self.enter(lane, nbytes)

    def passed(self, way: int, nbytes: int) -> None:
        """Count bytes that went straight on, as the link would have: each arrived before the next was offered."""
        counters = self.link.counters(DIRECTIONS[way])
        counters.bytes += nbytes
        counters.delayed(0.0)

    def enter(self, lane: "Lane", nbytes: int) -> None:
        """Bytes of `lane` are on their way; it reads no more while the link's queue is full."""
        way = lane.way
        self.in_flight[way] += nbytes
        if lane not in self._waiting[way]:
            now = monotonic()
            if self.in_flight[way] > self._full_at[way] or self.link.room_at(now, DIRECTIONS[way]) > now:
                self._waiting[way].add(lane)
                lane.hold(self)
                self._let_in(way)

    def leave(self, lane: "Lane", nbytes: int) -> None:
        """They have been delivered."""
        self.in_flight[lane.way] -= nbytes
        if self._waiting[lane.way]:
            self._let_in(lane.way)

    def forget(self, relay: "Relay") -> None:
        """A connection is closed."""
        self.relays.discard(relay)
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
        self.transparent = (
            blocked is None
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
        """The upstream has forgotten all connections that there are: they fall silent."""
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
        while self._held:
            lane, nbytes, exchange, end, settle, args = self._held[0]
            verdict = self.link.offer(monotonic(), DIRECTIONS[lane.way], nbytes, exchange, end=end)
            if isinstance(verdict, Hold) and verdict.cause is not Cause.HALF_OPEN:
                self._retry_at(verdict)
                return
            self._held.popleft()
            self.leave(lane, nbytes)
            if not isinstance(verdict, Hold):
                settle(verdict, *args)

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
