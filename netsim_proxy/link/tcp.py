"""How long TCP takes for a message: a stochastic model of its congestion windows, one flight at a time.

Each flight of packets passes the bottleneck behind what is queued there, loses what overflows the queue and what the
path loses, and its acknowledgements clock the next flight. Losses are repaired as Linux does: SACK and RACK-TLP (RFC
8985), proportional rate reduction (RFC 6937), and a retransmission timeout of a round trip and 200 ms.
"""

import math
from typing import Final

from common.draws import Draws
from netsim_proxy.link.flight import Flight, Plan
from netsim_proxy.link.loss import PacketLoss
from netsim_proxy.link.profiles import Path
from netsim_proxy.link.window import CongestionControl, Window

SEGMENT_BYTES: Final = 1448
"""Payload of a packet: 1,500 bytes less IPv4, TCP and its timestamps."""
HEADER_BYTES: Final = 52
_PACKET_BYTES: Final = SEGMENT_BYTES + HEADER_BYTES
_DUPLICATES: Final = 3
"""Later packets that must have arrived before an earlier one counts as lost at once."""
_MIN_TIMEOUT_SECONDS: Final = 0.2
_TICK_SECONDS: Final = 0.004
"""Timers of the kernel are late by about this."""


class TcpFlow:
    """One direction of one connection. It keeps its window between messages."""

    __slots__ = ("_busy", "_draws", "_loss", "_out", "_packet_seconds", "_queue_packets", "_timeout_extra", "_window")

    def __init__(self, path: Path, draws: Draws, control: CongestionControl = CongestionControl.CUBIC) -> None:
        self._draws = draws
        self._window = Window(control)
        self.take_path(path)
        self.settle()
        self._timeout_extra = 1.0

    def settle(self) -> None:
        """Forget what is on its way; the window stays as it is."""
        self._busy = -math.inf
        self._out = Flight(0, -math.inf, -math.inf, 0.0)

    def take_path(self, path: Path, bandwidth_factor: float = 1.0) -> None:
        """Go on over a path that has changed, of whose bandwidth this share is left."""
        self._loss = PacketLoss(path.loss, self._draws)
        self._queue_packets = path.queue_limit // _PACKET_BYTES
        self._packet_seconds = _PACKET_BYTES / (path.bytes_per_second * bandwidth_factor)

    def send(self, now: float, nbytes: int, round_trip: float, one_way: float, more: bool = False) -> float:
        """When the last of `nbytes` has arrived, in order.

        `now` never goes back; `more` says that more bytes follow at once, so that these are not the tail of a message.
        """
        fresh = math.ceil(nbytes / SEGMENT_BYTES)
        # The last packet is shorter than the others.
        saved = (fresh * SEGMENT_BYTES - nbytes) * self._packet_seconds / _PACKET_BYTES
        self._rest(now, round_trip)
        holes = 0
        arrived = now
        plan = self._clocked(now, fresh, round_trip, False)
        while True:
            flight = self._fly(now, plan, round_trip)
            resent = min(holes, flight.packets)
            fresh -= flight.packets - resent
            holes += flight.lost - resent
            arrived = max(arrived, self._busy + one_way)
            now = max(now, plan.start)
            self._out = flight
            self._timeout_extra *= 0.75
            flight.repair = plan.repair
            if flight.lost:
                plan, probed = self._repair(flight, plan, round_trip, sent=now, fresh=fresh, more=more, resent=resent)
                if probed:
                    holes -= 1
                    arrived = max(arrived, plan.start - round_trip + one_way)
                plan = plan._replace(clocked=min(plan.clocked, fresh + holes))
                if not fresh and not holes:
                    flight.lost, flight.packets = 0, 1
                    flight.ack_first = flight.ack_last = plan.start
                    break
            elif fresh or holes:
                plan = self._clocked(now, fresh + holes, round_trip, holes > 0)
            else:
                break
        return arrived - saved

    def _rest(self, now: float, round_trip: float) -> None:
        idle = now - self._out.ack_last
        timeout = self._timeout(round_trip)
        if self._out.packets and idle > timeout:
            self._window.rest(int(idle / timeout))

    def _timeout(self, round_trip: float) -> float:
        # The deviation is taken as two round trips at first, and comes down by a quarter of it in each.
        return round_trip + max(_MIN_TIMEOUT_SECONDS, 2 * round_trip * self._timeout_extra)

    def _clocked(self, now: float, want: int, round_trip: float, holes: bool) -> Plan:
        """The next flight, as the acknowledgements of the last one allow it."""
        out, window = self._out, self._window
        before = window.packets
        if out.packets and not out.repair:
            window.acked(out.packets, out, round_trip)
        allowed = window.packets
        if now >= out.ack_last:
            return Plan(min(want, allowed), 0, now, 0.0)
        span = out.ack_last - out.ack_first
        if holes:
            # Proportional rate reduction: one packet for each that arrived.
            return Plan(0, min(want, out.packets, allowed), out.ack_first, span, repair=True)
        if out.repair:
            return Plan(0, min(want, allowed), out.ack_first, span)
        came = (now - out.ack_first) / span if now > out.ack_first else 0.0
        room = int(before + came * (allowed - before) - (1 - came) * out.packets)
        burst = min(want, max(0, room))
        clocked = min(want, allowed) - burst
        start = max(now, out.ack_first)
        return Plan(burst, clocked, start, (out.ack_last - start) * clocked / max(1, allowed - burst))

    def _fly(self, now: float, plan: Plan, round_trip: float) -> Flight:
        """Send a flight through the bottleneck."""
        each = self._packet_seconds
        dropped, first_dropped = 0, 0
        first = math.inf
        waited = 0.0
        sent = 0
        for at, count, span in ((now, plan.burst, 0.0), (plan.start, plan.clocked, plan.span)):
            if not count:
                continue
            begin = max(self._busy, at)
            over = 0
            if each:
                over = int((begin - at - span) / each + count - 1 - self._queue_packets)
                over = min(max(over, 0), count - 1)
            if first == math.inf:
                first, waited = begin + each, begin - at
            if over and not dropped:
                # What comes at twice the rate of the bottleneck loses every other packet once the queue is full.
                first_dropped = sent + max(0, count - (2 * over if span else over))
            self._busy = max(begin + (count - over) * each, at + span + each)
            dropped += over
            sent += count
        flight = Flight(sent, first + round_trip, self._busy + round_trip, waited)
        passed = sent - dropped
        flight.first_lost = min(self._loss.first_lost(passed), first_dropped if dropped else sent)
        flight.lost = self._loss.take(passed) + dropped
        return flight

    def _repair(
        self, flight: Flight, plan: Plan, round_trip: float, *, sent: float, fresh: int, more: bool, resent: int
    ) -> tuple[Plan, bool]:
        """The flight that sends again what `flight` lost, and whether a probe before it has already filled one hole."""
        window = self._window
        recovering = plan.repair
        hole = flight.first_lost
        follow = max(0, flight.packets - hole - flight.lost)
        if not recovering:
            window.acked(hole, flight, round_trip)
        before = min(hole, fresh)
        need = 1 if recovering else _DUPLICATES
        probed = False
        if follow >= need:
            noticed = flight.ack_of(hole + need)
        elif follow:
            noticed = flight.ack_of(hole + 1) + round_trip / 4 + _TICK_SECONDS
        elif before or more:
            noticed = flight.ack_of(hole) + round_trip
        else:
            last_ack = flight.ack_of(hole - 1) if hole else sent
            if recovering or flight.lost == 1:
                noticed = last_ack + self._timeout(round_trip) + _TICK_SECONDS
                if recovering:
                    window.collapse()
                    return Plan(0, 1, noticed, 0.0), False
            else:
                probed = True
                noticed = last_ack + 3 * round_trip + 2 * _TICK_SECONDS
        if not recovering or hole >= resent + plan.before:
            window.reduce()
        budget = 2 if probed else before + max(1, follow - need + 1)
        start = flight.ack_first if before else noticed
        clocked = min(window.packets, budget)
        return Plan(0, clocked, start, max(0.0, flight.ack_last - start), repair=True, before=before), probed
