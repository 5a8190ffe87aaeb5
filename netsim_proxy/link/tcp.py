"""TCP flow: delivery times of messages from a stochastic model, one flight of packets at a time.

Each flight passes the bottleneck behind the packets that are queued there. It loses packets that overflow the queue and
packets that the path loses. Losses are noticed and repaired as Linux does: SACK and RACK-TLP (RFC 8985), and a
retransmission timeout. When a flight is sent is a matter of the congestion control: see `WindowFlow` and `PacedFlow`.
"""

import math
from abc import ABC, abstractmethod
from typing import Final, NamedTuple

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.ack_clock import AckClock
from hypergpu.netsim_proxy.link.bottleneck import Bottleneck
from hypergpu.netsim_proxy.link.congestion import INITIAL_WINDOW, CongestionWindow
from hypergpu.netsim_proxy.link.flight import Flight, RoundTripFlight
from hypergpu.netsim_proxy.link.loss import PacketLoss
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.round_trips import RoundTrips

SEGMENT_BYTES: Final = 1448
"""Payload of a packet: 1,500 bytes less IPv4, TCP and its timestamps."""
HEADER_BYTES: Final = 52
PACKET_BYTES: Final = SEGMENT_BYTES + HEADER_BYTES
DUPLICATES: Final = 3
"""Later packets that must have arrived before an earlier one counts as lost at once."""
_MANY: Final = 1 << 30
_CONTINUES_SECONDS: Final = 0.005
"""Longest gap after which a piece still continues the one before it."""
_REORDERING_SECONDS: Final = 0.008
"""Time that the reordering timer runs beyond a quarter of a round trip: two ticks."""
_TICK_SECONDS: Final = 0.004
"""Lateness of the kernel's timers."""


class Notice(NamedTuple):
    """Notice of losses: when the sender learns of them, and what it may send then."""

    at: float
    """Time at which it learns of the first."""
    batch: int = 1
    """Lost packets that it may send again before another acknowledgement."""
    last_at: float = -math.inf
    """Time at which it learns of the last of these."""
    next_at: float = math.inf
    """Time at which packets that were sent before the notice are acknowledged, which lets `next_batch` more follow."""
    next_batch: int = 0
    freed: int = 0
    """Packets whose delivery lets one of the next message be sent: from the notice on, until `freed_until`."""
    freed_until: float = -math.inf
    window: int = 0
    """Window that holds until a tail-loss probe is acknowledged; 0: the window after the loss."""
    probed: int = 0
    """Packets that a tail-loss probe has delivered."""
    timed_out: bool = False


class TcpFlow(ABC):
    """One direction of a connection. It keeps its window and the flight in progress between messages.

    Attributes:
        sent: when the last packet that was given to it so far is sent.
        busy_until: when its last packet leaves the bottleneck.
    """

    __slots__ = (
        "_bottleneck", "_clock", "_draws", "_flight", "_loss", "_passed", "_round_trips", "_unfilled", "busy_until",
        "sent",
    )  # fmt: skip

    _window: CongestionWindow

    def __init__(self, path: Path, draws: KeyedRandom, bottleneck: Bottleneck | None = None) -> None:
        self._draws = draws
        self._bottleneck = bottleneck or Bottleneck()
        self._round_trips = RoundTrips()
        self.set_path(path)
        self.settle()

    def settle(self) -> None:
        """Forget packets on their way; the window stays as it is."""
        self.sent = self.busy_until = -math.inf
        self._flight = RoundTripFlight()
        self._clock = AckClock()
        self._passed = -math.inf  # when the last byte has left the bottleneck
        self._unfilled = 0  # bytes that the last packet has room for, if more follow

    def set_path(self, path: Path, bandwidth_factor: float = 1.0, now: float = -math.inf) -> None:
        """Change the path; `bandwidth_factor` is the share of its bandwidth that is left."""
        self._loss = PacketLoss(path.loss, self._draws)
        packet_seconds = PACKET_BYTES / (path.bytes_per_second * bandwidth_factor)
        self._bottleneck.set_path(packet_seconds, path.queue_limit // PACKET_BYTES, now)

    def send(self, now: float, nbytes: int, round_trip: float, one_way: float, more: bool = False) -> float:
        """Return when the last of `nbytes` has arrived, in order.

        `now` never goes back; `more` says that more bytes follow at once, so that these are not the tail of a message.
        """
        # A piece that follows at once fills up the last packet of the one before it.
        filled = min(nbytes, self._unfilled) if now <= self.sent + _CONTINUES_SECONDS else 0
        self._unfilled -= filled
        nbytes -= filled
        if not nbytes:  # it fits into the last packet
            if not more:
                self._unfilled = 0
            self._passed += filled / PACKET_BYTES * self._bottleneck.packet_seconds
            return max(now, self._passed) + one_way
        fresh = math.ceil(nbytes / SEGMENT_BYTES)
        unfilled = fresh * SEGMENT_BYTES - nbytes
        self._unfilled = unfilled if more else 0
        short = 0.0 if more else unfilled / PACKET_BYTES
        passed = self._send_packets(now, fresh, round_trip, short, more)
        if more:  # the rest of the last packet is not here yet
            passed -= unfilled / PACKET_BYTES * self._bottleneck.packet_seconds
        self._passed = passed
        return passed + one_way

    def hold(self, until: float) -> None:
        """Note that a bottleneck further on takes no more before `until`: a pause until then is no idleness."""
        self.sent = max(self.sent, until)
        self._flight.sent_last = max(self._flight.sent_last, until)

    @abstractmethod
    def _send_packets(self, now: float, fresh: int, round_trip: float, short: float, more: bool) -> float:
        """Send new packets, and lost ones again; return when the last has passed the bottleneck.

        `short` is the share of a packet that the last one lacks.
        """

    def _fly(self, now: float, want: int, round_trip: float, short: float) -> Flight:
        """Send up to `want` packets, as many as the round trip allows.

        `short` is the share of a packet that the last one wanted lacks.
        """
        flight, clock = self._flight, self._clock
        if 0 < flight.before - flight.packets < want:
            want, short = flight.before - flight.packets, 0.0  # losses of the rest begin a recovery of their own
        burst = clock.take_burst(want)
        clocked, begin, span = clock.take_clocked(want - burst, now)
        if burst + clocked < want:
            short = 0.0
        part, dropped = Flight(burst + clocked), 0
        if burst:
            self.sent = max(now, self.sent)
            dropped = self._pass(part, self.sent, burst, 0.0, round_trip, 0.0 if clocked else short)
        if clocked:
            self.sent = begin
            dropped += self._pass(part, begin, clocked, span, round_trip, short)
        passed = part.packets - dropped
        part.first_lost = self._loss.first_lost(min(passed, part.first_lost))
        part.lost = self._loss.take(passed) + dropped
        part.last_lost = self._loss.last
        part.trailing_lost = self._loss.trailing + (0 if clocked else dropped)
        flight.append(part)
        return part

    def _pass(  # noqa: PLR0917 - called for every flight
        self, part: Flight, at: float, count: int, span: float, round_trip: float, short: float
    ) -> int:
        """Let packets that come evenly from `at` for `span` seconds through the bottleneck; return how many it drops.

        `short` is the share of a packet that the last one lacks.
        """
        each, queue_packets = self._bottleneck.packet_seconds, self._bottleneck.queue_packets
        if self._bottleneck.is_shared:
            passage = self._bottleneck.admit(at, span, count, short=short)
            dropped, waited = passage.dropped, passage.first_queue * each
            first_dropped = passage.first_dropped
            self.busy_until = max(self.busy_until, at + span + (passage.last_queue + 1 - short) * each)
        else:
            begin, dropped = max(self.busy_until, at), 0
            waited = begin - at
            if each:
                dropped = min(max(0, int((waited - span) / each + count - 1 - queue_packets)), count - 1)
                self._bottleneck.recorded.append((at, at + span, count - dropped - short, waited / each))
            # What comes at twice the rate of the bottleneck loses every other packet once the queue is full.
            first_dropped = max(0, count - (2 * dropped if span else dropped))
            self.busy_until = max(begin + (count - dropped - short) * each, at + span + each * (1 - short))
        if dropped and part.first_lost == part.packets:
            part.first_lost = part.packets - count + first_dropped
        if part.ack_first == -math.inf:
            part.first_queued = min(waited + (each if count > 1 else each * (1 - short)), self.busy_until - at)
            part.ack_first = at + part.first_queued + round_trip
        part.ack_last = self.busy_until + round_trip
        part.sent_last, part.last_queued = at + span, self.busy_until - at - span
        return dropped

    def _pass_again(self, at: float, count: int) -> float:
        """Let retransmitted packets through the bottleneck; return when the last has passed."""
        if self._bottleneck.is_shared:
            last_queue = self._bottleneck.admit(at, 0.0, count, may_drop=False).last_queue
            passed = at + (last_queue + 1) * self._bottleneck.packet_seconds
            self.busy_until = max(self.busy_until, passed)
            return passed
        passed = max(self.busy_until, at) + count * self._bottleneck.packet_seconds
        if self.busy_until >= at:
            self.busy_until = passed
        return passed

    def _notice(self, part: Flight, index: int, round_trip: float, fresh: int, more: bool) -> Notice:
        """Return when the losses of `part` are noticed, the first of which is at `index` of the flight."""
        flight = self._flight
        recovering = flight.repairs
        need = 1 if recovering else DUPLICATES
        hole = part.first_lost
        follow = max(0, part.packets - hole - part.lost)
        early = min(index, _MANY if more else fresh)
        freed = _MANY if recovering else early + max(0, follow - need)
        if follow:
            next_at = part.ack_first + round_trip if early else math.inf
            until = -math.inf if recovering else part.ack_last
            if follow < need:
                at = part.ack_of(hole + 1) + round_trip / 4 + _REORDERING_SECONDS
                return Notice(at, next_at=next_at, next_batch=early, freed=freed, freed_until=until)
            seen = part.lost - part.trailing_lost
            last_at = part.ack_of(part.last_lost + 1) if seen > 1 else -math.inf
            batch = min(follow - need + 1, seen)
            return Notice(part.ack_of(hole + need), batch, last_at, next_at, early, freed, until)
        if fresh or more:
            at = part.ack_last if more and self._clock.left else max(part.ack_first + round_trip, part.ack_last)
            return Notice(at + need * self._bottleneck.packet_seconds, early + 1, freed=freed)
        return self._notice_of_tail(part, index, round_trip)

    def _notice_of_tail(self, part: Flight, index: int, round_trip: float) -> Notice:
        """Return when the loss of the last packets of a message is noticed: nothing new is sent after them."""
        flight = self._flight
        before = self._ack_before(part)
        if flight.repairs and (index < flight.before or flight.resent_at >= part.sent_last):
            return Notice(max(flight.resent_at + round_trip, before), part.lost, freed=_MANY)
        at = (self.sent if before == -math.inf else before) + self._tail_seconds(index, part.lost, round_trip)
        if flight.repairs:
            return Notice(at, timed_out=True)
        if part.lost > 1:
            return Notice(at + round_trip, 2, probed=1)
        window = (self._window.packets + max(flight.packets, INITIAL_WINDOW)) // 2  # it was not full for so long
        return Notice(at, freed=window - 1, window=window)

    def _ack_before(self, part: Flight) -> float:
        """Return when the packet before the first lost one is acknowledged; -inf without one."""
        return part.ack_of(part.first_lost - 1) if part.first_lost else -math.inf

    def _tail_seconds(self, index: int, holes: int, round_trip: float) -> float:
        """Return the time from the last acknowledgement to the probe or timeout that follows the loss of a tail."""
        flight, measured = self._flight, self._round_trips
        if index:
            measured = measured.copy()
            measured.add(round_trip + flight.first_queued, round_trip + flight.last_queued, index)
        return (measured.timeout_seconds if flight.repairs else measured.probe_seconds(holes)) + _TICK_SECONDS

    def _resend(self, notice: Notice, holes: int, round_trip: float, *, follows: bool) -> tuple[float, bool]:
        """Send holes again; `follows` says that other packets are sent beside them.

        Returns:
            When the last of them has passed, and whether a retransmission timeout was needed.
        """
        window, timed_out = self._window, notice.timed_out
        at, batch, last_at, next_batch = notice.at, notice.batch, notice.last_at, notice.next_batch
        passed = at
        while holes:
            count = min(holes, batch, window.packets)
            if count > 1 and last_at > at:
                self._pass_again(at, count - 1)
                passed = self._pass_again(last_at, 1)
            else:
                passed = self._pass_again(at, count)
            delivered = count - self._loss.take(count)
            holes -= delivered
            self._flight.resent += count
            self._flight.resent_at = passed
            at, batch, last_at = passed + round_trip, 2 * max(1, delivered), -math.inf
            if holes and not delivered and not follows:
                window.collapse()
                timed_out = True
                at += self._round_trips.timeout_seconds - round_trip
            elif next_batch:
                at, batch = max(passed, min(at, notice.next_at)), batch + next_batch
            next_batch = 0
        return passed, timed_out
