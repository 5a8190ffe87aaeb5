"""One node's link to the upstream: what happens to every piece of data that is offered to it, and when.

The proxy's pacer and the virtual-time simulator drive this same object. It reads no clock and sleeps for nobody: each
call says when it is, and is told when the data arrives. Nothing here is random but the draws keyed by (seed, link,
purpose, index), so the same arrivals get the same times whatever other links do.

One RPC is one `Exchange`, begun when it is first seen. Its latency is drawn once, as one quantile that holds for both
paths, so that with equal paths request and reply take half of the round trip each. A further message on the same
stream, one offered when the one before it has arrived, gets a draw of its own. Bandwidth is one queue per direction.
"""

import math
from collections.abc import Callable
from typing import Final

from common.draws import Draws
from netsim_proxy.link.conditions import Blocked, Conditions
from netsim_proxy.link.distributions import standard_normal, standard_normal_cdf
from netsim_proxy.link.events import DisconnectMode, NetworkEvent
from netsim_proxy.link.loss import LossChain
from netsim_proxy.link.outcomes import Cause, Deliver, Direction, DirectionCounters, Exchange, Fail, Hold, LossModel
from netsim_proxy.link.profiles import Loss, Path, Profile, find_profile
from netsim_proxy.link.tcp import SEGMENT_BYTES, TcpFlow
from netsim_proxy.link.window import CongestionControl

_UP: Final = Direction.UP  # looking an enum's member up takes as long as all else that is done to a byte
_RPC: Final = LossModel.RPC
_NEVER: Final = -math.inf
_NOTICE_SECONDS: Final = 0.2
"""Linux's lowest retransmission timeout: a loss is noticed after one of them, or two, the second twice as long."""
_APPETITE_SECONDS: Final = 0.1
_FULL_PIECE_BYTES: Final = 16 << 10
"""A piece of that size is not the tail of a message, unless it is the end of its stream."""
_STREAM_POINT_BYTES: Final = (64 << 10, 64 << 20)
"""Where a lost stream ends if it is longer than that: evenly in the logarithm between these."""


class _Lane(DirectionCounters):
    """One direction: its path, the time until which its bandwidth is taken, and what it has done."""

    __slots__ = ("busy_until", "flows", "latency", "number", "path", "seconds_per_byte")

    def __init__(self, number: int, path: Path) -> None:
        super().__init__()
        self.number = number
        self.take(path)
        self.seconds_per_byte = 1.0 / path.bytes_per_second
        self.busy_until = -math.inf
        self.flows: dict[int, TcpFlow] = {}

    def take(self, path: Path) -> None:
        """What it is like from now on."""
        self.path = path
        self.latency = path.latency.at


class Link:
    """The link of one node; `link_id` and `seed` name its draws."""

    __slots__ = (
        "_added_seconds", "_blocked", "_chain", "_conditions", "_connections", "_dead_connections", "_down", "_draws",
        "_find_profile", "_latency_draws", "_latency_factor", "_message_draws", "_next_change", "_notice_draws",
        "_profile", "_request_share", "_score", "_seed", "_side_draws", "_undisturbed_until", "_up",
        "congestion_control", "link_id", "loss_model", "losses", "rpcs",
    )  # fmt: skip

    def __init__(
        self,
        link_id: str,
        profile: Profile,
        seed: int,
        *,
        loss_model: LossModel = LossModel.RPC,
        congestion_control: CongestionControl = CongestionControl.CUBIC,
        profiles: Callable[[str], Profile] = find_profile,
        draws: type[Draws] = Draws,
    ) -> None:
        self.link_id = link_id
        self.loss_model = loss_model
        self.congestion_control = congestion_control
        self.rpcs = 0
        self.losses: dict[Cause, int] = dict.fromkeys(Cause, 0)
        self._seed = seed
        self._find_profile = profiles
        self._draws = draws  # of what every RPC draws
        self._latency_draws = draws(seed, link_id, "latency")
        self._message_draws = Draws(seed, link_id, "message")
        self._side_draws = Draws(seed, link_id, "lost side")
        self._notice_draws = Draws(seed, link_id, "notice")
        self._score = standard_normal(self._latency_draws.uniform(0))
        self._connections: set[int] = set()
        self._dead_connections: set[int] = set()
        self._blocked: Blocked | None = None
        self._conditions = Conditions(profile)
        self._up = _Lane(0, profile.up)
        self._down = _Lane(1, profile.down)
        self._profile = profile
        self._latency_factor = 1.0
        self._added_seconds = 0.0
        self._refresh(-math.inf)
        self._set_losses()

    # --- traffic

    def begin(self, now: float, connection: int = 0) -> Exchange:
        """A new RPC arrives: draw its latency and its fate."""
        if now >= self._next_change:
            self._advance(now)
        index = self.rpcs
        self.rpcs = index + 1
        quantile = self._latency_draws.uniform(index + 1)
        rho = self._profile.jitter_correlation
        if rho:
            self._score = rho * self._score + math.sqrt(1 - rho * rho) * standard_normal(quantile)
            quantile = standard_normal_cdf(self._score)
        exchange = Exchange(index, connection, quantile, self._score)
        self._connections.add(connection)
        if self.loss_model is _RPC and self._chain.lost(index):
            self._doom(exchange)
        return exchange

    def connect(self, now: float, connection: int) -> Exchange:
        """What a connection sends outside of RPCs (settings, pings, window updates): delayed alike, and never lost."""
        self._advance(now)
        self._connections.add(connection)
        quantile = Draws(self._seed, self.link_id, "connection").uniform(connection)
        return Exchange(-1 - connection, connection, quantile, standard_normal(quantile))

    def disconnect(self, connection: int) -> None:
        """The connection is closed; forget it."""
        self._connections.discard(connection)
        self._dead_connections.discard(connection)
        self._up.flows.pop(connection, None)
        self._down.flows.pop(connection, None)

    def settle(self) -> None:
        """Forget what is on its way, as if it had all arrived long ago; windows of connections stay as they are."""
        for lane in (self._up, self._down):
            lane.busy_until = -math.inf
            for flow in lane.flows.values():
                flow.settle()

    def offer(
        self,
        now: float,
        direction: Direction,
        nbytes: int,
        exchange: Exchange,
        *,
        end: bool = False,
        express: bool = False,
    ) -> Deliver | Fail | Hold:
        """Send a piece of `exchange`; `end` says that it is the last in its direction. `now` never goes back.

        `express`: it overtakes what waits for the bandwidth or for TCP, and takes none.
        After `Fail` the exchange is over; after `Hold` the piece was not taken.
        """
        if now >= self._undisturbed_until:
            self._advance(now)
            refused = self._refuse(now, exchange)
            if refused is not None:
                return refused
        if exchange.lost_on is not None and self._is_lost(direction, nbytes, exchange, end):
            return self._lose(now, exchange)

        lane = self._up if direction is _UP else self._down
        last = exchange.arrived[lane.number]
        first = now >= last
        if first and last > _NEVER:
            self._redraw(exchange)
        one_way = lane.latency
        at = one_way(exchange.quantile) * self._latency_factor + self._added_seconds
        if express:
            at += now
        else:
            latency, sent = at, lane.busy_until
            lane.busy_until = sent = (now if now > sent else sent) + nbytes * lane.seconds_per_byte
            at += sent
            if self.loss_model is not _RPC:
                flow = lane.flows.get(exchange.connection) or self._open_flow(lane, exchange.connection)
                more = not end and nbytes >= _FULL_PIECE_BYTES
                at = max(at, flow.send(now, nbytes, self._round_trip(exchange), latency, more))
            exchange.arrived[lane.number] = at = at if at > last else last
        lane.bytes += nbytes
        if first:
            lane.delayed(at - now)
        return Deliver(at)

    def queued_bytes(self, now: float, direction: Direction) -> float:
        """What waits for the bandwidth."""
        lane = self._lane(direction)
        if lane.seconds_per_byte == 0:
            return 0.0
        return max(0.0, lane.busy_until - now) / lane.seconds_per_byte

    def room_at(self, now: float, direction: Direction) -> float:
        """When the queue is no longer full, and TCP has sent what it was given: `now`, or when to offer more."""
        lane = self._lane(direction)
        room = max(now, lane.busy_until - lane.path.queue_limit * lane.seconds_per_byte)
        return max(room, *(flow.sent for flow in lane.flows.values())) if lane.flows else room

    def appetite_bytes(self, direction: Direction) -> float:
        """What keeps a direction busy for a moment; under losses TCP has use for what passes between two of them.

        Who gives it more at a time only makes what comes after that wait.
        """
        lane = self._lane(direction)
        appetite = _APPETITE_SECONDS / lane.seconds_per_byte if lane.seconds_per_byte else math.inf
        loss = lane.path.loss.mean
        return min(appetite, SEGMENT_BYTES / loss) if loss and self.loss_model is not _RPC else appetite

    # --- control

    @property
    def profile(self) -> Profile:
        """The profile in force; events may be on top of it."""
        return self._profile

    @property
    def next_change(self) -> float:
        """When the link next changes by itself: an event ends or a flap turns; infinite = never."""
        return self._next_change

    def set_profile(self, profile: Profile, now: float) -> None:
        """Change the profile for good, at once; what waits in the queue goes on at the new rate."""
        self._advance(now)
        self._conditions.set_profile(profile, now)
        self._refresh(now)

    def set_loss_model(self, loss_model: LossModel) -> None:
        """Change what losses look like, from the next RPC on."""
        self.loss_model = loss_model

    def apply(self, event: NetworkEvent, now: float) -> None:
        """Let an event happen to this link now, whatever nodes it names.

        Raises:
            UnknownName: a profile change to an unknown profile.
        """
        self._advance(now)
        self._conditions.apply(event, now, self._find_profile)
        if event.mode == DisconnectMode.HALF_OPEN:
            self._dead_connections |= self._connections
        self._refresh(now)

    def clear(self, now: float) -> int:
        """End all events on this link and return how many ran."""
        self._advance(now)
        count = self._conditions.clear(now)
        self._refresh(now)
        return count

    def blocked(self, now: float) -> Blocked | None:
        """Why nothing passes now, or None."""
        self._advance(now)
        return self._blocked

    def active_events(self, now: float) -> list[NetworkEvent]:
        """The events that run now."""
        self._advance(now)
        return self._conditions.active()

    def state(self, now: float) -> str:
        """In a word: up, degraded, down or partitioned."""
        self._advance(now)
        if self._blocked is not None:
            return "partitioned" if self._blocked.cause == Cause.PARTITIONED else "down"
        return "degraded" if self._conditions.active() else "up"

    def counters(self, direction: Direction) -> DirectionCounters:
        """What the direction has done so far."""
        return self._lane(direction)

    @property
    def rpcs_lost(self) -> int:
        """RPCs that failed here, for whatever cause."""
        return sum(self.losses.values())

    def latency_bounds_ms(self, direction: Direction) -> tuple[float, float]:
        """The 1 % and 99 % quantiles of the one-way latency, with the events that run."""
        latency = self._lane(direction).path.latency
        low, high = (latency.at(u) * self._latency_factor + self._added_seconds for u in (0.01, 0.99))
        return low * 1000, high * 1000

    def bandwidth_mbit(self, direction: Direction) -> float:
        """The bandwidth, with the events that run."""
        return self._lane(direction).path.bandwidth_mbit * self._conditions.bandwidth_factor

    # --- inside

    def _lane(self, direction: Direction) -> _Lane:
        return self._up if direction is _UP else self._down

    def _advance(self, now: float) -> None:
        if now >= self._next_change:
            self._conditions.advance(now)
            self._refresh(now)

    def _refresh(self, now: float) -> None:
        conditions = self._conditions
        self._next_change = conditions.next_change
        self._blocked = conditions.blocked
        self._undisturbed_until = self._next_change if self._blocked is None and not self._dead_connections else _NEVER
        self._latency_factor = conditions.latency_factor
        self._added_seconds = conditions.added_seconds
        changed = conditions.profile is not self._profile
        self._profile = conditions.profile
        for lane, path in ((self._up, self._profile.up), (self._down, self._profile.down)):
            lane.take(path)
            seconds_per_byte = 1.0 / (path.bytes_per_second * conditions.bandwidth_factor)
            if seconds_per_byte != lane.seconds_per_byte:
                if lane.busy_until > now and lane.seconds_per_byte:
                    lane.busy_until = now + (lane.busy_until - now) * seconds_per_byte / lane.seconds_per_byte
                lane.seconds_per_byte = seconds_per_byte
            for flow in lane.flows.values():
                flow.take_path(path, conditions.bandwidth_factor)
        if changed:
            self._set_losses()

    def _set_losses(self) -> None:
        up, down = self._profile.up.loss, self._profile.down.loss
        mean = self._profile.loss
        self._chain = LossChain(Loss(mean, max(up.burst, down.burst)), self._draws(self._seed, self.link_id, "loss"))
        self._request_share = up.mean / (up.mean + down.mean) if mean else 0.0

    def _doom(self, exchange: Exchange) -> None:
        u = self._side_draws.uniform(exchange.index)
        share = self._request_share
        if u < share:
            # Half of these at the first byte; the server sees no more than the beginning of the others.
            exchange.lost_on, u = Direction.UP, 2 * u / share - 1
        else:
            exchange.lost_on, u = Direction.DOWN, (u - share) / (1 - share)
        low, high = _STREAM_POINT_BYTES
        exchange.lost_after = low * (high / low) ** u if u >= 0 else 0.0

    def _is_lost(self, direction: Direction, nbytes: int, exchange: Exchange, end: bool) -> bool:
        if direction is exchange.lost_on:
            exchange.moved += nbytes
            return end or exchange.moved > exchange.lost_after
        return end and direction is Direction.DOWN

    def _lose(self, now: float, exchange: Exchange) -> Fail:
        self.losses[Cause.LOSS] += 1
        timeouts = _NOTICE_SECONDS * (1 + 2 * self._notice_draws.uniform(exchange.index))
        return Fail(now + self._round_trip(exchange) + timeouts, Cause.LOSS)

    def _refuse(self, now: float, exchange: Exchange) -> Fail | Hold | None:
        if exchange.connection in self._dead_connections:
            return Hold(math.inf, Cause.HALF_OPEN)
        blocked = self._blocked
        if blocked is None:
            return None
        if blocked.reset:
            self.losses[Cause(blocked.cause)] += 1
            return Fail(now, Cause(blocked.cause))
        return Hold(blocked.until, Cause(blocked.cause))

    def _redraw(self, exchange: Exchange) -> None:
        exchange.messages += 1
        quantile = self._message_draws.uniform((exchange.index << 20) + exchange.messages)
        rho = self._profile.jitter_correlation
        if rho:
            exchange.score = rho * exchange.score + math.sqrt(1 - rho * rho) * standard_normal(quantile)
            quantile = standard_normal_cdf(exchange.score)
        exchange.quantile = quantile

    def _round_trip(self, exchange: Exchange) -> float:
        both = self._up.latency(exchange.quantile) + self._down.latency(exchange.quantile)
        return both * self._latency_factor + 2 * self._added_seconds

    def _open_flow(self, lane: _Lane, connection: int) -> TcpFlow:
        name = "up" if lane is self._up else "down"
        draws = Draws(self._seed, self.link_id, "packets", name, connection)
        flow = lane.flows[connection] = TcpFlow(lane.path, draws, self.congestion_control)
        flow.take_path(lane.path, self._conditions.bandwidth_factor)
        return flow
