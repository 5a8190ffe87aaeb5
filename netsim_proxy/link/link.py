"""One node's link to the upstream: the outcome and arrival time of each piece of data offered to it.

The proxy's pacer and the virtual-time simulator drive the same object. It reads no clock and never sleeps: each call
passes the current time and gets the arrival time. All randomness is keyed by (seed, link, purpose, index), so the same
arrivals get the same times regardless of other links.

One RPC is one `LinkRpc`, begun when it is first seen. Its latency is drawn once, as one quantile that holds for both
paths, so that with equal paths request and reply take half of the round trip each. A further message on the same
stream, one offered when the one before it has arrived, gets a draw of its own. Bandwidth is one queue per direction.
"""

import math
from collections.abc import Callable
from typing import Final

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.access_lane import AccessLink, AccessShares
from hypergpu.netsim_proxy.link.conditions import Blockage, Conditions, DirectionEffects
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.distributions import standard_normal, standard_normal_cdf
from hypergpu.netsim_proxy.link.events import DisconnectMode, EventDirection, NetworkEvent
from hypergpu.netsim_proxy.link.flows import open_flow
from hypergpu.netsim_proxy.link.lane import LinkLane
from hypergpu.netsim_proxy.link.loss import LossChain
from hypergpu.netsim_proxy.link.outcomes import (
    RECENT_MESSAGES,
    Blocked,
    Cause,
    Deliver,
    Direction,
    DirectionCounters,
    Fail,
    LinkRpc,
    LossModel,
)
from hypergpu.netsim_proxy.link.profiles import Loss, Profile, find_profile
from hypergpu.netsim_proxy.link.tcp import PACKET_BYTES, SEGMENT_BYTES, TcpFlow

_UP: Final = Direction.UP  # reading it from the enum each time would take half the time of `offer`
_RPC: Final = LossModel.RPC
_NEVER: Final = -math.inf
_DETECTION_SECONDS: Final = 0.2
"""Lowest retransmission timeout of Linux. A loss is detected after one of them, or two, the second twice as long."""
_USEFUL_SECONDS: Final = 0.1
_PACKET_SHARE: Final = PACKET_BYTES / SEGMENT_BYTES
FULL_PIECE_BYTES: Final = 16 << 10
"""Smallest piece taken for one of many of a message, unless it ends its stream."""
_STREAM_POINT_BYTES: Final = (64 << 10, 64 << 20)
"""A lost stream longer than one message fails after so many bytes: log-uniform between these bounds."""


class Link:
    """The link of one node; `link_id` and `seed` name its draws."""

    __slots__ = (
        "_chain",
        "_conditions",
        "_connections",
        "_detection_draws",
        "_down",
        "_draws",
        "_find_profile",
        "_latency_draws",
        "_message_draws",
        "_next_change",
        "_profile",
        "_request_share",
        "_score",
        "_seed",
        "_side_draws",
        "_undisturbed_until",
        "_up",
        "congestion_control",
        "link_id",
        "loss_model",
        "losses",
        "rpcs",
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
        draws: type[KeyedRandom] = KeyedRandom,
        access: AccessLink | None = None,
    ) -> None:
        self.link_id = link_id
        self.loss_model = loss_model
        self.congestion_control = congestion_control
        self.rpcs = 0
        self.losses: dict[Cause, int] = dict.fromkeys(Cause, 0)
        self._seed = seed
        self._find_profile = profiles
        self._draws = draws  # of latencies and losses, which every RPC draws
        self._latency_draws = draws(seed, link_id, "latency")
        self._message_draws = KeyedRandom(seed, link_id, "message")
        self._side_draws = KeyedRandom(seed, link_id, "lost side")
        self._detection_draws = KeyedRandom(seed, link_id, "notice")
        self._score = standard_normal(self._latency_draws.uniform(0))
        self._connections: dict[int, float] = {}  # start time by number
        self._conditions = Conditions(profile)
        self._up = LinkLane(0, profile.up)
        self._down = LinkLane(1, profile.down)
        self._profile = profile
        if access is not None:
            self.share_access(access)
        self._refresh(-math.inf)
        self._set_losses()

    # --- traffic

    def begin(self, now: float, connection: int = 0) -> LinkRpc:
        """Begin an RPC: draw its latency and its loss."""
        if now >= self._next_change:
            self._advance(now)
        index = self.rpcs
        self.rpcs = index + 1
        quantile = self._latency_draws.uniform(index + 1)
        rho = self._profile.jitter_correlation
        if rho:
            self._score = rho * self._score + math.sqrt(1 - rho * rho) * standard_normal(quantile)
            quantile = standard_normal_cdf(self._score)
        rpc = LinkRpc(index, connection, quantile, self._score)
        if connection not in self._connections:
            self._connections[connection] = now
        if self.loss_model is _RPC and self._chain.lost(index):
            self._draw_loss_point(rpc)
        return rpc

    def connect(self, now: float, connection: int) -> LinkRpc:
        """Begin traffic of a connection outside RPCs (settings, pings, window updates): delayed alike, never lost."""
        self._advance(now)
        self._connections.setdefault(connection, now)
        quantile = KeyedRandom(self._seed, self.link_id, "connection").uniform(connection)
        return LinkRpc(-1 - connection, connection, quantile, standard_normal(quantile))

    def disconnect(self, connection: int) -> None:
        """Forget a closed connection."""
        self._connections.pop(connection, None)
        for lane in (self._up, self._down):
            lane.forget(connection)

    def settle(self) -> None:
        """Forget data in flight, as if it had arrived long ago; connections keep their congestion windows."""
        for lane in (self._up, self._down):
            lane.busy_until = -math.inf
            lane.bottleneck.settle()
            for flow in lane.flows.values():
                flow.settle()

    def offer(
        self,
        now: float,
        direction: Direction,
        nbytes: int,
        rpc: LinkRpc,
        *,
        end: bool = False,
        express: bool = False,
    ) -> Deliver | Fail | Blocked:
        """Send a piece of `rpc`; `end` marks the last one in its direction. `now` never goes back.

        `express`: the piece overtakes queued data and takes no bandwidth.
        After `Fail` the RPC is over; after `Blocked` the piece was not taken.
        """
        if now >= self._undisturbed_until and (refused := self._refuse(now, direction, nbytes, rpc)) is not None:
            return refused
        if rpc.lost_on is not None and self._is_lost(direction, nbytes, rpc, end):
            return self._lose(now, rpc)
        lane = self._up if direction is _UP else self._down
        last = rpc.arrived[lane.number]
        first = now >= last
        if first and last > _NEVER:
            self._redraw(rpc)
        at = lane.latency(rpc.quantile) * lane.latency_factor + lane.added_seconds
        if express:
            at += now
        else:
            if lane.access is not None:
                at = self._send_through_access(now, lane, lane.access, nbytes, rpc, at, end)
            elif self.loss_model is _RPC:
                sent = lane.busy_until
                lane.busy_until = sent = (now if now > sent else sent) + nbytes * lane.seconds_per_byte
                at += sent
            else:
                at = self._send_by_tcp(now, lane, nbytes, rpc, at, end)
            rpc.arrived[lane.number] = at = at if at > last else last
        lane.bytes += nbytes
        if first:  # as `lane.delayed`, whose call would take a tenth of this function's time
            lane.messages = messages = lane.messages + 1
            delay = at - now
            lane.delay_seconds += delay
            window = messages if messages < RECENT_MESSAGES else RECENT_MESSAGES
            lane.recent_seconds += (delay - lane.recent_seconds) / window
        return Deliver(at)

    def queued_bytes(self, now: float, direction: Direction) -> float:
        """Return the bytes in the queue for the bandwidth."""
        lane = self._lane(direction)
        if self.loss_model is not _RPC:
            return lane.bottleneck.queue_at(now) * PACKET_BYTES
        if lane.seconds_per_byte == 0:
            return 0.0
        return max(0.0, lane.busy_until - now) / lane.seconds_per_byte

    def room_at(self, now: float, direction: Direction, connection: int = 0) -> float:
        """Return the time to offer more of a connection: `now`, or when the queue has room or TCP has sent its data."""
        lane = self._lane(direction)
        if lane.access is not None:
            now = max(now, lane.access.room_at(connection))
        if self.loss_model is _RPC:
            return max(now, lane.busy_until - lane.path.queue_limit * lane.seconds_per_byte)
        flow = lane.flows.get(connection)
        return now if flow is None else max(now, flow.sent)

    def one_way_seconds(self, direction: Direction, rpc: LinkRpc) -> float:
        """Return the latency of the message of `rpc` that was offered last, without bandwidth."""
        lane = self._lane(direction)
        return lane.latency(rpc.quantile) * lane.latency_factor + lane.added_seconds

    def useful_window_bytes(self, direction: Direction) -> float:
        """Return the bytes worth offering at a time: 0.1 s of bandwidth, or the mean between two losses if less.

        Offering more only delays later data.
        """
        lane = self._lane(direction)
        window = _USEFUL_SECONDS / lane.seconds_per_byte if lane.seconds_per_byte else math.inf
        window = min(window, self.shared_window_bytes(direction))
        loss = lane.path.loss.mean
        return min(window, SEGMENT_BYTES / loss) if loss and self.loss_model is not _RPC else window

    def shared_window_bytes(self, direction: Direction) -> float:
        """Return the same for a connection's share of the access link; infinite = that is unlimited."""
        access = self._lane(direction).access
        return math.inf if access is None else access.lane.useful_bytes

    # --- control

    def share_access(self, access: AccessLink) -> None:
        """Cross this access link from now on; to be called again when it gets its first bandwidth or has none left."""
        self._up.share(access.up)
        self._down.share(access.down)

    @property
    def shares_access(self) -> bool:
        """True if the access link limits a direction."""
        return self._up.access is not None or self._down.access is not None

    @property
    def profile(self) -> Profile:
        """Current profile; events may act on top of it."""
        return self._profile

    @property
    def next_change(self) -> float:
        """Time at which an event ends or a flap switches next; infinite = never."""
        return self._next_change

    def set_profile(self, profile: Profile, now: float) -> None:
        """Change the profile at once; queued data continues at the new rate."""
        self._advance(now)
        self._conditions.set_profile(profile, now)
        self._refresh(now)

    def set_loss_model(self, loss_model: LossModel) -> None:
        """Change the loss model, from the next RPC on."""
        self.loss_model = loss_model

    def apply(self, event: NetworkEvent, now: float) -> None:
        """Start an event on this link now, ignoring its targets.

        Raises:
            UnknownName: a profile change to an unknown profile.
        """
        self._advance(now)
        self._conditions.apply(event, now, self._find_profile)
        if event.mode == DisconnectMode.HALF_OPEN:
            for lane, direction in ((self._up, EventDirection.UP), (self._down, EventDirection.DOWN)):
                if event.direction in (direction, EventDirection.BOTH):
                    lane.dead_connections.update(self._connections)
        self._refresh(now)

    def clear(self, now: float) -> int:
        """End all events on this link and return their number."""
        self._advance(now)
        count = self._conditions.clear(now)
        self._refresh(now)
        return count

    def blocked(self, now: float, direction: Direction | None = None) -> Blockage | None:
        """Return why a direction passes nothing now, or None. Without `direction`: why neither direction does."""
        self._advance(now)
        if direction is not None:
            return self._lane(direction).blocked
        up, down = self._up.blocked, self._down.blocked
        if up is None or down is None:
            return None
        return Blockage(up.cause, min(up.until, down.until), up.reset and down.reset)

    def resets_one_way(self, direction: Direction) -> bool:
        """Return whether data in this direction resets its connection, but data in the other does not."""
        here, there = self._lane(direction).blocked, self._lane(direction.opposite).blocked
        return here is not None and here.reset and not (there is not None and there.reset)

    def is_disturbed(self, now: float) -> bool:
        """Return whether a block, a limit or a dead connection may stop data, beside the profile."""
        self._advance(now)
        return self._undisturbed_until == _NEVER

    def closes_at(self, connection: int, now: float) -> float:
        """Return the time at which active events close a connection; infinite = never."""
        self._advance(now)
        since = self._connections.get(connection, now)
        return min((max(began, since) + seconds for began, seconds in self._conditions.lifetimes), default=math.inf)

    def allowance(self, connection: int, direction: Direction) -> float:
        """Return the bytes that a connection may still carry; infinite = no limit."""
        lane = self._lane(direction)
        return lane.limit.left(connection)

    def close_delay_seconds(self, direction: Direction) -> float:
        """Return the delay of the end of a connection."""
        return self._effects(direction).close_delay_seconds

    @property
    def limits_connections(self) -> bool:
        """True if an event ends connections after some bytes or seconds."""
        limited = self._up.limit.nbytes < math.inf or self._down.limit.nbytes < math.inf
        return limited or bool(self._conditions.lifetimes)

    def active_events(self, now: float) -> list[NetworkEvent]:
        """Return the active events."""
        self._advance(now)
        return self._conditions.active()

    def event_summaries(self, now: float) -> list[str]:
        """Return one line per active event."""
        self._advance(now)
        return self._conditions.summaries()

    def state(self, now: float) -> str:
        """Return up, degraded (including one direction down), down or partitioned."""
        blocked = self.blocked(now)
        if blocked is not None:
            return "partitioned" if blocked.cause == Cause.PARTITIONED else "down"
        return "degraded" if self._conditions.is_degraded else "up"

    def counters(self, direction: Direction) -> DirectionCounters:
        """Return the counters of a direction."""
        return self._lane(direction)

    @property
    def rpcs_lost(self) -> int:
        """Number of RPCs that failed on this link, for any cause."""
        return sum(self.losses.values())

    def latency_bounds_ms(self, direction: Direction) -> tuple[float, float]:
        """Return the 1 % and 99 % quantiles of the one-way latency, with active events."""
        lane = self._lane(direction)
        low, high = (lane.path.latency.at(u) * lane.latency_factor + lane.added_seconds for u in (0.01, 0.99))
        return low * 1000, high * 1000

    def bandwidth_mbit(self, direction: Direction) -> float:
        """Return the bandwidth, with active events."""
        return self._lane(direction).path.bandwidth_mbit * self._effects(direction).bandwidth_factor

    # --- internals

    def _send_through_access(  # noqa: PLR0917 - hot: keywords would cost more than they explain
        self,
        now: float,
        lane: LinkLane,
        access: AccessShares,
        nbytes: int,
        rpc: LinkRpc,
        latency: float,
        end: bool,
    ) -> float:
        """Send over the line of the node and the access link, which passes what the line carries or its share."""
        wait = access.lane.wait_seconds(now)
        if self.loss_model is _RPC:
            lane.busy_until = max(now, lane.busy_until) + nbytes * lane.seconds_per_byte
            at, on_access = lane.busy_until + latency + wait, float(nbytes)
        else:
            at = self._send_by_tcp(now, lane, nbytes, rpc, latency, end, wait)
            on_access = nbytes * _PACKET_SHARE
        line_seconds = at - latency - now
        seconds = access.cross(now, rpc.connection, on_access, line_seconds)
        if seconds <= line_seconds:
            return at
        if self.loss_model is not _RPC:
            lane.flows[rpc.connection].hold(access.room_at(rpc.connection))
        return now + seconds + latency

    def _send_by_tcp(  # noqa: PLR0917 - hot: keywords would cost more than they explain
        self, now: float, lane: LinkLane, nbytes: int, rpc: LinkRpc, latency: float, end: bool, wait: float = 0.0
    ) -> float:
        flow = lane.bottleneck.flows.get(rpc.connection) or self._open_flow(now, lane, rpc.connection)
        more = not end and nbytes >= FULL_PIECE_BYTES
        round_trip, latency = self._round_trip(rpc) + wait, latency + wait
        other = self._down if lane is self._up else self._up
        if other.access is not None:
            round_trip += other.access.lane.wait_seconds(now)
        back = other.bottleneck
        if back.busy_until > now:  # acknowledgements wait behind the data of the other direction
            round_trip += back.queue_at(now + latency) * back.packet_seconds
        return flow.send(now, nbytes, round_trip, latency, more)

    def _effects(self, direction: Direction) -> DirectionEffects:
        return self._conditions.up if direction is _UP else self._conditions.down

    def _lane(self, direction: Direction) -> LinkLane:
        return self._up if direction is _UP else self._down

    def _advance(self, now: float) -> None:
        if now >= self._next_change:
            self._conditions.advance(now)
            self._refresh(now)

    def _refresh(self, now: float) -> None:
        conditions = self._conditions
        self._next_change = conditions.next_change
        changed = conditions.profile is not self._profile
        self._profile = conditions.profile
        for lane, path, effects in (
            (self._up, self._profile.up, conditions.up),
            (self._down, self._profile.down, conditions.down),
        ):
            lane.set_path(path)
            lane.latency_factor, lane.added_seconds = effects.latency_factor, effects.added_seconds
            lane.blocked = effects.blocked
            lane.limit.set(effects.limit_bytes)
            seconds_per_byte = 1.0 / (path.bytes_per_second * effects.bandwidth_factor)
            if seconds_per_byte != lane.seconds_per_byte:
                if lane.busy_until > now and lane.seconds_per_byte:
                    lane.busy_until = now + (lane.busy_until - now) * seconds_per_byte / lane.seconds_per_byte
                lane.seconds_per_byte = seconds_per_byte
            for flow in lane.flows.values():
                flow.set_path(path, effects.bandwidth_factor, now)
        disturbed = self.limits_connections or any(
            lane.blocked is not None or lane.dead_connections for lane in (self._up, self._down)
        )
        self._undisturbed_until = _NEVER if disturbed else self._next_change
        if changed:
            self._set_losses()

    def _set_losses(self) -> None:
        up, down = self._profile.up.loss, self._profile.down.loss
        mean = self._profile.loss
        self._chain = LossChain(Loss(mean, max(up.burst, down.burst)), self._draws(self._seed, self.link_id, "loss"))
        self._request_share = up.mean / (up.mean + down.mean) if mean else 0.0

    def _draw_loss_point(self, rpc: LinkRpc) -> None:
        u = self._side_draws.uniform(rpc.index)
        share = self._request_share
        if u < share:
            # Half of these at the first byte; the server sees no more than the beginning of the others.
            rpc.lost_on, u = Direction.UP, 2 * u / share - 1
        else:
            rpc.lost_on, u = Direction.DOWN, (u - share) / (1 - share)
        low, high = _STREAM_POINT_BYTES
        rpc.moved = 0
        rpc.lost_after = low * (high / low) ** u if u >= 0 else 0.0

    def _is_lost(self, direction: Direction, nbytes: int, rpc: LinkRpc, end: bool) -> bool:
        if direction is rpc.lost_on:
            rpc.moved += nbytes
            return end or rpc.moved > rpc.lost_after
        return end and direction is Direction.DOWN

    def _lose(self, now: float, rpc: LinkRpc) -> Fail:
        self.losses[Cause.LOSS] += 1
        timeouts = _DETECTION_SECONDS * (1 + 2 * self._detection_draws.uniform(rpc.index))
        return Fail(now + self._round_trip(rpc) + timeouts, Cause.LOSS)

    def _refuse(self, now: float, direction: Direction, nbytes: int, rpc: LinkRpc) -> Fail | Blocked | None:
        self._advance(now)
        lane, connection = self._lane(direction), rpc.connection
        if connection in lane.dead_connections:
            return Blocked(math.inf, Cause.HALF_OPEN)
        if self._conditions.lifetimes and now >= self.closes_at(connection, now):
            return self._end(now, Cause.LIMIT_TIME)
        blocked = lane.blocked
        if blocked is not None:
            cause = Cause(blocked.cause)
            return self._end(now, cause) if blocked.reset else Blocked(blocked.until, cause)
        if lane.limit.nbytes < math.inf:
            if nbytes > self.allowance(connection, direction):
                return self._end(now, Cause.LIMIT_DATA)
            lane.limit.carry(connection, nbytes)
        return None

    def _end(self, now: float, cause: Cause) -> Fail:
        self.losses[cause] += 1
        return Fail(now, cause)

    def _redraw(self, rpc: LinkRpc) -> None:
        rpc.messages += 1
        quantile = self._message_draws.uniform((rpc.index << 20) + rpc.messages)
        rho = self._profile.jitter_correlation
        if rho:
            rpc.score = rho * rpc.score + math.sqrt(1 - rho * rho) * standard_normal(quantile)
            quantile = standard_normal_cdf(rpc.score)
        rpc.quantile = quantile

    def _round_trip(self, rpc: LinkRpc) -> float:
        up, down = self._up, self._down
        there, back = up.latency(rpc.quantile), down.latency(rpc.quantile)
        if up.latency_factor == down.latency_factor and up.added_seconds == down.added_seconds:
            return (there + back) * up.latency_factor + 2 * up.added_seconds  # one rounding for symmetric events
        return there * up.latency_factor + up.added_seconds + back * down.latency_factor + down.added_seconds

    def _open_flow(self, now: float, lane: LinkLane, connection: int) -> TcpFlow:
        name = "up" if lane is self._up else "down"
        draws = KeyedRandom(self._seed, self.link_id, "packets", name, connection)
        control = lane.path.congestion_control or self.congestion_control
        flow = lane.flows[connection] = open_flow(lane.path, draws, control, lane.bottleneck)
        effects = self._conditions.up if lane is self._up else self._conditions.down
        flow.set_path(lane.path, effects.bandwidth_factor, now)
        return flow
