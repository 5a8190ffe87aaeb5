"""How long TCP takes for a message: a stochastic model of its congestion windows, one flight at a time.

Each flight of packets passes the bottleneck behind what is queued there, loses what overflows the queue and what the
path loses, and its acknowledgements clock the next flight. Losses are repaired as Linux does: SACK and RACK-TLP (RFC
8985), proportional rate reduction (RFC 6937), and a retransmission timeout of a round trip and 200 ms.
"""

import math
from typing import Final

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.bottleneck import Bottleneck
from hypergpu.netsim_proxy.link.flight import Flight
from hypergpu.netsim_proxy.link.loss import PacketLoss
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.window import CongestionControl, Window

SEGMENT_BYTES: Final = 1448
"""Payload of a packet: 1,500 bytes less IPv4, TCP and its timestamps."""
HEADER_BYTES: Final = 52
PACKET_BYTES: Final = SEGMENT_BYTES + HEADER_BYTES
_DUPLICATES: Final = 3
"""Later packets that must have arrived before an earlier one counts as lost at once."""
_MANY: Final = 1 << 30
_MIN_TIMEOUT_SECONDS: Final = 0.2
_CONTINUES_SECONDS: Final = 0.005
"""A piece offered this long after the last one was sent still continues it."""
_TICK_SECONDS: Final = 0.004
"""Timers of the kernel are late by about this."""


class TcpFlow:
    """One direction of one connection. It keeps its window, and the flight under way, between messages."""

    __slots__ = (
        "_bottleneck", "_burst", "_clock_total", "_clocked", "_draws", "_flight", "_loss", "_passed", "_prior",
        "_sent", "_shared", "_start", "_step", "_timeout_extra", "_unfilled", "_window", "busy_until",
    )  # fmt: skip

    def __init__(
        self,
        path: Path,
        draws: KeyedRandom,
        control: CongestionControl = CongestionControl.CUBIC,
        bottleneck: Bottleneck | None = None,
    ) -> None:
        self._draws = draws
        self._bottleneck = bottleneck or Bottleneck()
        self._shared = False  # whether other flows have packets in the bottleneck
        self._window = Window(control)
        self._timeout_extra = 1.0
        self.set_path(path)
        self.settle()

    def settle(self) -> None:
        """Forget what is on its way; the window stays as it is."""
        self.busy_until = -math.inf  # the bottleneck, until then
        self._flight = Flight()
        self._sent = -math.inf  # when the last part of the flight began
        self._passed = -math.inf  # when the last byte has left the bottleneck
        self._unfilled = 0  # bytes that the last packet has room for, if more follow
        self._prior = Flight()  # whose acknowledgements clock this flight
        self._clock_total = 1
        self._burst = self._clocked = 0  # what it may still send: at once, and as acknowledgements come
        self._start = self._step = 0.0  # of the next acknowledgement, and from one to the other

    def set_path(self, path: Path, bandwidth_factor: float = 1.0, now: float = -math.inf) -> None:
        """Change the path; `bandwidth_factor` is the share of its bandwidth that is left."""
        self._loss = PacketLoss(path.loss, self._draws)
        packet_seconds = PACKET_BYTES / (path.bytes_per_second * bandwidth_factor)
        self._bottleneck.set_path(packet_seconds, path.queue_limit // PACKET_BYTES, now)

    @property
    def sent(self) -> float:
        """When the last of what was given to it so far is sent."""
        return self._sent

    def send(self, now: float, nbytes: int, round_trip: float, one_way: float, more: bool = False) -> float:
        """When the last of `nbytes` has arrived, in order.

        `now` never goes back; `more` says that more bytes follow at once, so that these are not the tail of a message.
        """
        # A piece that follows at once fills up the last packet of the one before it.
        nbytes -= self._unfilled if now <= self._sent + _CONTINUES_SECONDS else 0
        fresh = max(0, math.ceil(nbytes / SEGMENT_BYTES))
        if not fresh:  # it fits into the last packet
            self._unfilled = -nbytes if more else 0
            return max(now, self._passed) + one_way
        unfilled = fresh * SEGMENT_BYTES - nbytes
        saved = unfilled * self._bottleneck.packet_seconds / PACKET_BYTES
        self._unfilled = unfilled if more else 0
        self._rest(now, round_trip)
        bottleneck = self._bottleneck
        self._shared = bottleneck.is_shared_with(self, now)
        passed = now
        while fresh:
            # Once the bottleneck has fallen idle for want of data, the window has room for a new burst.
            if not (self._burst or self._clocked) or now > self.busy_until:
                self._next_round(max(now, self._sent), round_trip)
            part = self._fly(now, fresh, round_trip)
            fresh -= part.packets
            passed = max(passed, self.busy_until)
            if part.lost:
                mended, early = self._recover(part, round_trip, fresh, more)
                passed = max(passed, mended)
                fresh -= early
        bottleneck.busy_until = max(bottleneck.busy_until, self.busy_until)
        self._passed = passed = passed - saved
        return passed + one_way

    def _rest(self, now: float, round_trip: float) -> None:
        out, timeout = self._flight, self._timeout(round_trip)
        if not out.packets or now - out.ack_last <= timeout:
            return
        if not out.repairs and not out.cut:
            self._window.acked(out.packets, out, round_trip)
        self._window.rest(int((now - out.ack_last) / timeout))
        self._flight = Flight()

    def _timeout(self, round_trip: float) -> float:
        # Four deviations are two round trips at first; a quarter of what exceeds the least goes in each round trip.
        excess = 2 * round_trip - _MIN_TIMEOUT_SECONDS
        return round_trip + _MIN_TIMEOUT_SECONDS + max(0.0, excess * self._timeout_extra)

    def _next_round(self, now: float, round_trip: float) -> None:
        """Return what the acknowledgements of the last flight allow the next one to send."""
        out, window = self._flight, self._window
        before = window.packets
        if not out.repairs and not out.cut:
            window.acked(out.packets, out, round_trip)
        allowed = window.packets
        self._timeout_extra *= 0.75
        self._flight = Flight()
        if now >= out.ack_last:
            self._burst, self._clocked = allowed, 0
            return
        if self._clocked and self._prior.ack_last > now:
            # It sent less than it might have: acknowledgements of the flight before are still to come as well.
            out.packets += int(self._prior.packets * self._clocked / self._clock_total)
            out.ack_first = max(now, self._start)
        self._prior = out
        self._start, span = out.ack_first, out.ack_last - out.ack_first
        if out.cut:
            self._flight.repairs, self._flight.before = True, max(0, out.next_before)
            self._burst, self._clocked = 0, max(1, out.next_packets - out.resent)
        elif out.repairs:
            self._burst, self._clocked = 0, allowed
        else:
            came = (now - out.ack_first) / span if now > out.ack_first else 0.0
            self._burst = max(0, int(before + came * (allowed - before) - (1 - came) * out.packets))
            self._clocked = max(1, allowed - self._burst)
            self._start = max(now, out.ack_first)
            span = out.ack_last - self._start
        self._clock_total = self._clocked
        self._step = span / self._clocked

    def _fly(self, now: float, want: int, round_trip: float) -> Flight:
        """Send what the round allows, up to `want` packets, through the bottleneck."""
        if 0 < self._flight.before - self._flight.packets < want:
            want = self._flight.before - self._flight.packets  # losses of the rest begin a recovery of their own
        burst = min(want, self._burst)
        clocked = min(want - burst, self._clocked)
        self._burst -= burst
        self._clocked -= clocked
        part, dropped = Flight(burst + clocked), 0
        if burst:
            self._sent = max(now, self._sent)
            dropped = self._pass(part, self._sent, burst, 0.0, round_trip)
        if clocked:
            begin = max(now, self._start)
            self._start += clocked * self._step
            self._sent = begin
            dropped += self._pass(part, begin, clocked, max(0.0, self._start - begin), round_trip)
        passed = part.packets - dropped
        part.first_lost = self._loss.first_lost(min(passed, part.first_lost))
        part.lost = self._loss.take(passed) + dropped
        flight = self._flight
        if not flight.packets:
            flight.ack_first, flight.waited = part.ack_first, part.waited
        flight.packets += part.packets
        flight.ack_last = part.ack_last
        return part

    def _pass(self, part: Flight, at: float, count: int, span: float, round_trip: float) -> int:
        """Let packets that come evenly from `at` on for `span` seconds through the bottleneck; how many it drops."""
        each = self._bottleneck.packet_seconds
        if self._shared:
            return self._pass_shared(part, at, count, span, round_trip)
        begin = max(self.busy_until, at)
        over = 0
        if each:
            over = min(max(0, int((begin - at - span) / each + count - 1 - self._bottleneck.queue_packets)), count - 1)
        if over and part.first_lost == part.packets:
            # What comes at twice the rate of the bottleneck loses every other packet once the queue is full.
            part.first_lost = max(0, part.packets - (2 * over if span else over))
        self.busy_until = max(begin + (count - over) * each, at + span + each)
        if part.ack_first == -math.inf:
            part.ack_first, part.waited = begin + each + round_trip, begin - at
        part.ack_last = self.busy_until + round_trip
        if each:
            self._bottleneck.recorded.append((at, at + span, count - over, (begin - at) / each))
        return over

    def _pass_shared(self, part: Flight, at: float, count: int, span: float, round_trip: float) -> int:
        """Let packets through behind those of other flows; return how many are dropped."""
        each = self._bottleneck.packet_seconds
        passage = self._bottleneck.admit(at, span, count)
        if passage.dropped and part.first_lost == part.packets:
            part.first_lost = part.packets - count + passage.first_dropped
        self.busy_until = max(self.busy_until, at + span + (passage.last_queue + 1) * each)
        if part.ack_first == -math.inf:
            part.waited = passage.first_queue * each
            part.ack_first = min(at + part.waited + each, self.busy_until) + round_trip
        part.ack_last = self.busy_until + round_trip
        return passage.dropped

    def _pass_again(self, at: float, count: int) -> float:
        """Let retransmitted packets through the bottleneck; return when the last has passed."""
        if self._shared:
            passed = (
                at
                + (self._bottleneck.admit(at, 0.0, count, may_drop=False).last_queue + 1)
                * self._bottleneck.packet_seconds
            )
            self.busy_until = max(self.busy_until, passed)
            return passed
        passed = max(self.busy_until, at) + count * self._bottleneck.packet_seconds
        if self.busy_until >= at:
            self.busy_until = passed
        return passed

    def _recover(self, part: Flight, round_trip: float, fresh: int, more: bool) -> tuple[float, int]:
        """Notice what `part` lost, reduce the window, and send it again; when the last of it has passed.

        `fresh` is how many packets are still to be sent after it: their acknowledgements tell of losses too. The second
        value is how many of them were sent before a recovery that leaves no room for others.
        """
        flight, window = self._flight, self._window
        hole, holes = part.first_lost, part.lost
        follow = max(0, part.packets - hole - holes)
        index = flight.packets - part.packets + hole
        recovering = flight.repairs
        grown = -window.packets
        if not (recovering or flight.cut):
            window.acked(index, flight, round_trip)
        grown += window.packets
        need = 1 if recovering else _DUPLICATES
        early = min(index, _MANY if more else fresh)
        batch = max(1, follow - need + 1) + early
        passed, timed_out = -math.inf, False
        if follow >= need:
            at = part.ack_of(hole + need)
        elif follow:
            at = part.ack_of(hole + 1) + round_trip / 4 + _TICK_SECONDS
        elif more and (self._burst or self._clocked):
            at = part.ack_last + need * self._bottleneck.packet_seconds
        elif fresh or more:
            at = max(part.ack_first + round_trip, part.ack_last) + need * self._bottleneck.packet_seconds
        else:
            at = part.ack_of(hole - 1) if hole else self._sent
            if recovering or holes == 1:
                timed_out = recovering
                at += self._timeout(round_trip) + _TICK_SECONDS
            else:
                # A probe after two round trips delivers the last packet, and its acknowledgement tells of the others.
                at += 3 * round_trip + 2 * _TICK_SECONDS
                holes, batch, passed = holes - 1, 2, at - round_trip
        if timed_out:
            window.collapse()
        elif not flight.cut or (index >= flight.before and flight.next_before < 0):
            self._reduce(index, holes, need, grown, follows=bool(fresh) or more)
        flight.cut = True
        passed, alone = self._resend(
            at, holes, batch, round_trip=round_trip, more=fresh > 0 or more, timed_out=timed_out, passed=passed
        )
        return passed, min(early, fresh) if alone else 0

    def _reduce(self, index: int, holes: int, need: int, grown: int, *, follows: bool) -> None:
        """Reduce the window for a loss at `index` of the flight, and plan how many packets the next flight has.

        `need` acknowledgements of later packets notice it; those before it have grown the window by `grown`.
        """
        flight, window = self._flight, self._window
        prior = window.packets
        # Until the loss is noticed each acknowledgement clocks out a packet, later ones as many as PRR allows.
        unnoticed = index + grown + need - 1
        if not flight.repairs or index >= flight.before:
            window.reduce()
            flight.next_before = unnoticed
        total = flight.packets + (self._burst + self._clocked if follows else 0)
        later = max(0, total - index - holes - need + 1)
        kept = unnoticed + math.ceil(later * window.packets / prior)
        flight.next_packets = max(kept, min(window.packets, unnoticed + later))

    def _resend(
        self, at: float, holes: int, batch: int, *, round_trip: float, more: bool, timed_out: bool, passed: float
    ) -> tuple[float, bool]:
        """Send holes again from `at` on, `batch` of them in the first round trip.

        Returns when the last of them has passed, and whether nothing else could be sent beside them.
        """
        window = self._window
        rounds = 0
        while holes:
            count = min(holes, batch, window.packets)
            passed = self._pass_again(at, count)
            delivered = count - self._loss.take(count)
            holes -= delivered
            rounds += 1
            at, batch = passed + round_trip, 2 * max(1, delivered)
            if holes and not delivered and not more:
                window.collapse()
                timed_out = True
                at += self._timeout(round_trip) - round_trip
            self._flight.resent += count
        alone = timed_out or not rounds
        if alone or not more:
            self._flight = Flight(1, at, at)
            self._flight.repairs = not timed_out
            self._burst = self._clocked = 0
            self._sent = at - round_trip
        return passed, alone
