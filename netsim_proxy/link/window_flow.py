"""TCP flow whose acknowledgements clock what it sends next, up to a congestion window: CUBIC and Reno.

On a loss the window falls by proportional rate reduction (RFC 6937).
"""

import math

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.bottleneck import Bottleneck
from hypergpu.netsim_proxy.link.flight import Flight, RoundTripFlight
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.tcp import DUPLICATES, TcpFlow
from hypergpu.netsim_proxy.link.window import Window


class WindowFlow(TcpFlow):
    """Flow that keeps as many packets in flight as its window allows."""

    __slots__ = ("_prior", "_window")

    def __init__(self, path: Path, draws: KeyedRandom, window: Window, bottleneck: Bottleneck | None = None) -> None:
        self._window: Window = window
        super().__init__(path, draws, bottleneck)

    def settle(self) -> None:
        """Forget packets on their way; the window stays as it is."""
        super().settle()
        self._prior = RoundTripFlight()  # whose acknowledgements clock this flight

    def _send_packets(self, now: float, fresh: int, round_trip: float, short: float, more: bool) -> float:
        """Send new packets, and lost ones again; return when the last has passed the bottleneck."""
        if not self._round_trips.smoothed:
            self._round_trips.begin(round_trip)
            self._window.fill(now)
        self._end_pause(now, round_trip)
        bottleneck = self._bottleneck
        bottleneck.join(self, now)
        passed = now
        while fresh:
            # Once the bottleneck has fallen idle for want of data, the window has room for a new burst.
            if not self._clock.left or now > self.busy_until:
                self._next_round(max(now, self.sent), round_trip)
            part = self._fly(now, fresh, round_trip, short)
            if not self._clock.left:
                self._window.fill(part.sent_last)
            fresh -= part.packets
            passed = max(passed, self.busy_until)
            if part.lost:
                mended, early = self._recover(part, round_trip, fresh, more)
                passed = max(passed, mended)
                fresh -= early
        if not more:
            self._note_usage()
        bottleneck.busy_until = max(bottleneck.busy_until, self.busy_until)
        return passed

    def _end_pause(self, now: float, round_trip: float) -> None:
        """If all packets are acknowledged, end the flight and reduce the window for the idle time."""
        out = self._flight
        if not out.packets or now < out.ack_last:
            return
        self._acknowledge(out, round_trip)
        self._flight = RoundTripFlight()
        idle_seconds = max(0.0, now - out.sent_last)
        timeouts = int(idle_seconds / self._round_trips.timeout_seconds)
        self._window.rest(idle_seconds, timeouts)
        if timeouts:
            self._round_trips.pause()

    def _acknowledge(self, flight: RoundTripFlight, round_trip: float) -> None:
        if flight.packets:
            self._round_trips.add(round_trip + flight.first_queued, round_trip + flight.last_queued, flight.packets)
        if flight.grows_window:
            self._window.acked(flight.packets, flight, round_trip)

    def _note_usage(self) -> None:
        """Reduce a window that has not been filled for a retransmission timeout."""
        flight, clock = self._flight, self._clock
        if clock.left and flight.grows_window:
            self._window.use_part(flight.packets, flight.sent_last, self._round_trips.timeout_seconds)
            clock.limit(max(0, self._window.packets - flight.packets))

    def _next_round(self, now: float, round_trip: float) -> None:
        """Start a round trip: the acknowledgements of the last flight release the packets of the next one."""
        out, window = self._flight, self._window
        before = window.packets
        self._acknowledge(out, round_trip)
        allowed = window.packets
        self._flight = RoundTripFlight()
        if now >= out.ack_last:
            self._clock.start(allowed)
            return
        if self._clock.clocked and self._prior.ack_last > now:
            # It sent less than it might have: acknowledgements of the flight before are still to come as well.
            unused, out.ack_first = self._clock.unused_since(now, self._prior.packets)
            out.packets += unused
        self._prior = out
        span = out.ack_last - out.ack_first
        if out.reduced:
            self._flight.repairs, self._flight.before = True, max(0, out.next_before)
            self._flight.resent_at = out.resent_at
            self._clock.start(0, max(1, out.next_packets - out.resent), out.ack_first, span)
        elif out.repairs:
            freed = out.freed_at(now)
            if 0 < out.allowed <= freed + 1:
                self._clock.start(out.allowed)
            else:
                begin = now if freed and now < out.freed_until else out.ack_first
                self._clock.start(freed, allowed - freed, begin, out.ack_last - begin)
        else:
            came = (now - out.ack_first) / span if now > out.ack_first else 0.0
            burst = max(0, int(before + came * (allowed - before) - (1 - came) * out.packets))
            begin = max(now, out.ack_first)
            self._clock.start(burst, max(1, allowed - burst), begin, out.ack_last - begin)

    def _recover(self, part: Flight, round_trip: float, fresh: int, more: bool) -> tuple[float, int]:
        """Notice the losses of `part`, reduce the window, and send the packets again.

        `fresh` packets are still to be sent after it; their acknowledgements reveal losses too.

        Returns:
            When the last packet has passed, and how many of the `fresh` ones were sent before a recovery that leaves no
            room for others.
        """
        flight, window = self._flight, self._window
        index = flight.packets - part.packets + part.first_lost
        grown = -window.packets
        if flight.grows_window:
            window.acked(index, flight, round_trip)
        grown += window.packets
        follows = fresh > 0 or more
        notice = self._notice(part, index, round_trip, fresh, more)
        holes = part.lost - notice.probed
        if notice.timed_out:
            window.collapse()
        elif not flight.reduced or (index >= flight.before and flight.next_before < 0):
            self._reduce(index, holes, 1 if flight.repairs else DUPLICATES, grown, follows=follows)
        flight.reduced = True
        passed, timed_out = self._resend(notice, holes, round_trip, follows=follows)
        if timed_out or not follows:
            back = passed + round_trip
            self._flight = RoundTripFlight(1, back, back)
            self._flight.repairs = not timed_out
            self._flight.allow(notice.window or window.packets, notice.freed, notice.at, notice.freed_until)
            self._flight.sent_last = self.sent = passed
            self._clock.stop()
        return passed, min(index, fresh) if timed_out else 0

    def _reduce(self, index: int, holes: int, need: int, grown: int, *, follows: bool) -> None:
        """Reduce the window for a loss at `index` of the flight, and plan how many packets the next flight has.

        `need` acknowledgements of later packets reveal it; those before it have grown the window by `grown`.
        """
        flight, window = self._flight, self._window
        prior = window.packets
        # Until the loss is noticed each acknowledgement clocks out a packet, later ones as many as PRR allows.
        unnoticed = index + grown + need - 1
        if not flight.repairs or index >= flight.before:
            window.reduce()
            flight.next_before = unnoticed
        total = flight.packets + (self._clock.left if follows else 0)
        later = max(0, total - index - holes - need + 1)
        kept = unnoticed + math.ceil(later * window.packets / prior)
        flight.next_packets = max(kept, min(window.packets, unnoticed + later))
