"""How long TCP takes for a message: a stochastic model of its congestion windows, one flight at a time.

Each flight of packets passes the bottleneck behind what is queued there, loses what overflows the queue and what the
path loses, and its acknowledgements clock the next flight. Losses are repaired as Linux does: SACK and RACK-TLP (RFC
8985), proportional rate reduction (RFC 6937), and a retransmission timeout of a round trip and 200 ms.
"""

import math
from typing import Final

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.flight import Flight
from hypergpu.netsim_proxy.link.loss import PacketLoss
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.window import CongestionControl, Window

SEGMENT_BYTES: Final = 1448
"""Payload of a packet: 1,500 bytes less IPv4, TCP and its timestamps."""
HEADER_BYTES: Final = 52
_PACKET_BYTES: Final = SEGMENT_BYTES + HEADER_BYTES
_DUPLICATES: Final = 3
"""Later packets that must have arrived before an earlier one counts as lost at once."""
_MANY: Final = 1 << 30
_MIN_TIMEOUT_SECONDS: Final = 0.2
_TICK_SECONDS: Final = 0.004
"""Timers of the kernel are late by about this."""


class TcpFlow:
    """One direction of one connection. It keeps its window, and the flight under way, between messages."""

    __slots__ = (
        "_burst", "_busy", "_clock_total", "_clocked", "_draws", "_flight", "_loss", "_packet_seconds", "_prior",
        "_queue_packets", "_sent", "_start", "_step", "_timeout_extra", "_window",
    )  # fmt: skip

    def __init__(self, path: Path, draws: KeyedRandom, control: CongestionControl = CongestionControl.CUBIC) -> None:
        self._draws = draws
        self._window = Window(control)
        self._timeout_extra = 1.0
        self.take_path(path)
        self.settle()

    def settle(self) -> None:
        """Forget what is on its way; the window stays as it is."""
        self._busy = -math.inf  # the bottleneck, until then
        self._flight = Flight()
        self._sent = -math.inf  # when the last part of the flight began
        self._prior = Flight()  # whose acknowledgements clock this flight
        self._clock_total = 1
        self._burst = self._clocked = 0  # what it may still send: at once, and as acknowledgements come
        self._start = self._step = 0.0  # of the next acknowledgement, and from one to the other

    def take_path(self, path: Path, bandwidth_factor: float = 1.0) -> None:
        """Go on over a path that has changed, of whose bandwidth this share is left."""
        self._loss = PacketLoss(path.loss, self._draws)
        self._queue_packets = path.queue_limit // _PACKET_BYTES
        self._packet_seconds = _PACKET_BYTES / (path.bytes_per_second * bandwidth_factor)

    @property
    def sent(self) -> float:
        """When the last of what was given to it so far is sent."""
        return self._sent

    def send(self, now: float, nbytes: int, round_trip: float, one_way: float, more: bool = False) -> float:
        """When the last of `nbytes` has arrived, in order.

        `now` never goes back; `more` says that more bytes follow at once, so that these are not the tail of a message.
        """
        fresh = math.ceil(nbytes / SEGMENT_BYTES)
        # The last packet is shorter than the others.
        saved = (fresh * SEGMENT_BYTES - nbytes) * self._packet_seconds / _PACKET_BYTES
        self._rest(now, round_trip)
        passed = now
        while fresh:
            # Once the bottleneck has fallen idle for want of data, the window has room for a new burst.
            if not (self._burst or self._clocked) or now > self._busy:
                self._next_round(max(now, self._sent), round_trip)
            part = self._fly(now, fresh, round_trip)
            fresh -= part.packets
            passed = max(passed, self._busy)
            if part.lost:
                mended, early = self._recover(part, round_trip, fresh, more)
                passed = max(passed, mended)
                fresh -= early
        return passed - saved + one_way

    def _rest(self, now: float, round_trip: float) -> None:
        out, timeout = self._flight, self._timeout(round_trip)
        if not out.packets or now - out.ack_last <= timeout:
            return
        if not out.repairs and not out.cut:
            self._window.acked(out.packets, out, round_trip)
        self._window.rest(int((now - out.ack_last) / timeout))
        self._flight = Flight()

    def _timeout(self, round_trip: float) -> float:
        # The deviation is taken as two round trips at first, and comes down by a quarter of it in each.
        return round_trip + max(_MIN_TIMEOUT_SECONDS, 2 * round_trip * self._timeout_extra)

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
            self._flight.repairs, self._flight.before = True, out.before
            self._burst, self._clocked = 0, max(1, allowed - out.resent)
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
        each = self._packet_seconds
        begin = max(self._busy, at)
        over = 0
        if each:
            over = min(max(0, int((begin - at - span) / each + count - 1 - self._queue_packets)), count - 1)
        if over and part.first_lost == part.packets:
            # What comes at twice the rate of the bottleneck loses every other packet once the queue is full.
            part.first_lost = max(0, part.packets - (2 * over if span else over))
        self._busy = max(begin + (count - over) * each, at + span + each)
        if part.ack_first == -math.inf:
            part.ack_first, part.waited = begin + each + round_trip, begin - at
        part.ack_last = self._busy + round_trip
        return over

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
        if not (recovering or flight.cut):
            window.acked(index, flight, round_trip)
        need = 1 if recovering else _DUPLICATES
        early = min(index, _MANY if more else fresh)
        batch = max(1, follow - need + 1) + early
        passed, timed_out = -math.inf, False
        if follow >= need:
            at = part.ack_of(hole + need)
        elif follow:
            at = part.ack_of(hole + 1) + round_trip / 4 + _TICK_SECONDS
        elif more and (self._burst or self._clocked):
            at = part.ack_last + need * self._packet_seconds
        elif fresh or more:
            at = max(part.ack_first + round_trip, part.ack_last) + need * self._packet_seconds
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
        elif not flight.cut and (not recovering or index >= flight.before):
            window.reduce()
        flight.cut, flight.before = True, index
        passed, alone = self._resend(
            at, holes, batch, round_trip=round_trip, more=fresh > 0 or more, timed_out=timed_out, passed=passed
        )
        return passed, min(early, fresh) if alone else 0

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
            passed = max(self._busy, at) + count * self._packet_seconds
            if self._busy >= at:
                self._busy = passed
            delivered = count - self._loss.take(count)
            holes -= delivered
            rounds += 1
            at, batch = passed + round_trip, 2 * max(1, delivered)
            if holes and not delivered and not more:
                window.collapse()
                timed_out = True
                at += self._timeout(round_trip) - round_trip
            self._flight.resent += count
        alone = rounds != 1 or timed_out
        if alone or not more:
            self._flight = Flight(1, at, at)
            self._flight.repairs = not timed_out
            self._burst = self._clocked = 0
            self._sent = at - round_trip
        return passed, alone
