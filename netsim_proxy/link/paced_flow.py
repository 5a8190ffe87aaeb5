"""TCP flow that is paced by a model of its path: BBR.

The sender plans one step at a time: packets at one pace, for a quarter of a round trip, and no more than its window and
the acknowledgements of that time allow. Lost packets that are sent again take their turn in the pace.
"""

import math
from bisect import insort
from collections import deque
from typing import Final, NamedTuple

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.ack_clock import PaceClock
from hypergpu.netsim_proxy.link.bbr import Bbr
from hypergpu.netsim_proxy.link.bottleneck import Bottleneck
from hypergpu.netsim_proxy.link.congestion import INITIAL_WINDOW
from hypergpu.netsim_proxy.link.deliveries import Deliveries
from hypergpu.netsim_proxy.link.flight import Flight, RoundTripFlight
from hypergpu.netsim_proxy.link.path_estimate import Delivery
from hypergpu.netsim_proxy.link.profiles import Path
from hypergpu.netsim_proxy.link.tcp import DUPLICATES, Notice, TcpFlow

_STEP_ROUND_TRIPS: Final = 1 / 4
"""Length of a step: rates are measured once for each."""
_LATE_SECONDS: Final = 1e-9
_WHOLE_PACKET: Final = 1.0 - 1e-6
"""Room for one packet, less what sums of shares of packets are off by."""


class _Step(NamedTuple):
    """Packets sent at one pace, until the last of them is acknowledged."""

    at: float
    sent_at: float
    total_before: float
    acked_at: float
    """Time of the last acknowledgement before the last packet was sent."""
    is_app_limited: bool
    round_trip: float
    lost: int
    mended_at: float


class _Repair(NamedTuple):
    """Lost packets that are to be sent again."""

    at: float
    """Time from which they may be."""
    holes: tuple[int, ...]
    """For each packet, how often it will be lost again."""


class PacedFlow(TcpFlow):
    """Flow that sends at the pace of BBR."""

    __slots__ = (
        "_clock", "_deliveries", "_idle_until", "_learnt", "_limited_until", "_mends", "_repairs", "_steps", "_window",
    )  # fmt: skip

    def __init__(self, path: Path, draws: KeyedRandom, bottleneck: Bottleneck | None = None) -> None:
        self._window: Bbr = Bbr(draws)
        self._deliveries = Deliveries()
        self._learnt = 0.0  # deliveries until the last measurement
        super().__init__(path, draws, bottleneck)

    def settle(self) -> None:
        """Forget packets on their way; what is known of the path stays."""
        super().settle()
        self._deliveries.settle()
        self._steps: deque[_Step] = deque()
        self._repairs: list[_Repair] = []  # in order of their time
        self._clock: PaceClock = PaceClock()
        self._limited_until = 0.0  # deliveries until which the sender had too little to send
        self._idle_until = -math.inf  # end of the last pause without packets in flight
        self._mends = (math.inf, -math.inf)  # when the last recovery began, and when all its losses are mended

    def _send_packets(self, now: float, fresh: int, round_trip: float, short: float, more: bool) -> float:
        """Send new packets, and lost ones again; return when the last has passed the bottleneck."""
        if not self._round_trips.smoothed:
            self._round_trips.begin(round_trip)
            self._window.begin(now, round_trip)
        bottleneck = self._bottleneck
        bottleneck.join(self, now)
        self._end_pause(now)
        passed = now
        while fresh:
            if not self._clock.left or now > self._clock.next_at + _LATE_SECONDS:
                at, mended = self._repair(max(now, self._clock.next_at), round_trip)
                passed = max(passed, mended)
                self._plan_step(at)
            part = self._fly(now, fresh, round_trip, short)
            fresh -= part.packets
            passed = max(passed, self.busy_until, self._follow(part, round_trip, fresh, more=more))
        passed = max(passed, self._expected_repair(round_trip) if more else self._finish(round_trip))
        bottleneck.busy_until = max(bottleneck.busy_until, self.busy_until)
        return passed

    def _end_pause(self, now: float) -> None:
        """Note a time without packets in flight."""
        self._learn(now)
        if self._deliveries.in_flight(now) < _WHOLE_PACKET:
            self._idle_until = now
            self._window.resume()

    # ------------------------------------------------------------ the pace

    def _plan_step(self, at: float) -> None:
        """Plan new packets from a time on at which the window has room."""
        began, until = self._mends
        before, self._flight = self._flight, RoundTripFlight()
        self._flight.repairs, self._flight.resent_at = began <= at < until, before.resent_at
        first = INITIAL_WINDOW - self._deliveries.sent
        if first > 0:  # Linux does not pace these
            self._clock.begin(first, at, 0.0)
        else:
            self._clock.begin(self._allowance(at), at, self._window.packet_seconds)

    def _allowance(self, at: float) -> int:
        """Return how many packets a step has."""
        window, deliveries = self._window, self._deliveries
        pace = window.packet_seconds
        seconds = max(window.least_round_trip * _STEP_ROUND_TRIPS, 2 * pace)
        acked = deliveries.acked(at + seconds) - deliveries.acked(at)
        room = window.packets - deliveries.in_flight(at) + (2 * acked if window.grows else acked)
        return max(1, int(min(seconds / pace, room)))

    def _room_at(self, at: float) -> float:
        """Return when the window has room, from a time on."""
        self._learn(at)
        while (room := self._window.packets - self._deliveries.in_flight(at)) < _WHOLE_PACKET:
            at = self._deliveries.frees(1.0 - room, at)
            self._learn(at)
        return at

    # ------------------------------------------------------------ losses

    def _follow(self, part: Flight, round_trip: float, fresh: int, *, more: bool) -> float:
        """Expect what becomes of packets; return when the last has passed that is sent again after all others."""
        deliveries = self._deliveries
        before = self._acked_before(part.sent_last)
        passed = mended_at = -math.inf
        deliveries.send(part.packets)
        if part.lost:
            passed, mended_at = self._lose(part, round_trip, fresh, more=more)
        if part.packets > part.lost:
            deliveries.acknowledge(part.ack_first, part.ack_last, part.packets - part.lost)
        least = round_trip + min(part.first_queued, part.last_queued)
        self._round_trips.add(round_trip + part.first_queued, round_trip + part.last_queued, part.packets)
        self._steps.append(_Step(part.ack_last, part.sent_last, *before, least, part.lost, mended_at))
        return passed

    def _acked_before(self, at: float) -> tuple[float, float, bool]:
        """Return packets delivered by a time, when the last of them was, and whether that was for want of data."""
        total = self._deliveries.acked(at)
        return total, max(self._deliveries.last_ack(at), self._idle_until), total < self._limited_until

    def _lose(self, part: Flight, round_trip: float, fresh: int, *, more: bool) -> tuple[float, float]:
        """Plan to send lost packets again, or do it if nothing follows them.

        Returns:
            When the last has passed, if that is known, and about when its acknowledgement returns.
        """
        flight, window = self._flight, self._window
        index = flight.packets - part.packets + part.first_lost
        follows = fresh > 0 or more
        notice = self._notice(part, index, round_trip, fresh, more)
        holes = part.lost - notice.probed
        self._deliveries.lose(notice.at, part.lost)
        if follows:
            again = self._draw_losses(holes)
            insort(self._repairs, _Repair(notice.at, again))
            passed, back = -math.inf, notice.at + (1 + max(again)) * (round_trip + part.last_queued)
        else:
            if notice.timed_out:
                window.collapse()
            passed, timed_out = self._resend(notice, holes, round_trip, follows=False)
            if timed_out:
                window.recover()
            self._deliveries.send(part.lost)
            back = passed + round_trip
            self._deliveries.acknowledge(min(back, notice.at + round_trip), back, part.lost)
        if notice.at >= self._mends[1]:
            self._mends = notice.at, back
        return passed, back

    def _draw_losses(self, packets: int) -> tuple[int, ...]:
        """Return for each of so many packets that are sent again how often it will be lost."""
        times = [0] * packets
        while packets := self._loss.take(packets):
            for index in range(packets):
                times[index] += 1
        return tuple(times)

    def _repair(self, at: float, round_trip: float) -> tuple[float, float]:
        """Send the packets again that are due; return when new ones may follow, and when these have passed."""
        at, passed = self._room_at(at), -math.inf
        while self._repairs and self._repairs[0].at <= at:
            due, holes = self._repairs.pop(0)
            packets = min(len(holes), self._allowance(at))
            if packets < len(holes):
                insort(self._repairs, _Repair(due, holes[packets:]))
            passed = self._send_again(at, holes[:packets], round_trip)
            at = self._room_at(at + packets * self._window.packet_seconds)
        return at, passed

    def _send_again(self, at: float, holes: tuple[int, ...], round_trip: float) -> float:
        """Send lost packets again, and expect what becomes of them; return when they have passed."""
        deliveries, packets = self._deliveries, len(holes)
        again = tuple(each - 1 for each in holes if each)
        before = self._acked_before(at)
        self._flight.resent_at = passed = self._pass_again(at, packets)
        self.busy_until = max(self.busy_until, passed)
        back = passed + round_trip
        deliveries.send(packets)
        if packets > len(again):
            first = back - (packets - 1) * self._bottleneck.packet_seconds
            deliveries.acknowledge(first, back, packets - len(again))
        if again:
            deliveries.lose(back, len(again))
            insort(self._repairs, _Repair(back, again))
        self._steps.append(_Step(back, at, *before, back - at, len(again), back + round_trip))
        return passed

    def _expected_repair(self, round_trip: float) -> float:
        """Return about when the last packet has passed that is sent again; more data will be sent before that."""
        queued = max(0.0, self.busy_until - self.sent)
        return max(
            (
                repair.at + queued + max(repair.holes) * (round_trip + queued)
                + len(repair.holes) * self._bottleneck.packet_seconds
                for repair in self._repairs
            ),
            default=-math.inf,
        )  # fmt: skip

    def _finish(self, round_trip: float) -> float:
        """Send the last of a message again; return when it has passed. The sender waits for data until then."""
        passed = -math.inf
        while self._repairs:
            at = max(self._clock.next_at, self._repairs[0].at)
            passed = max(passed, self._repair(at, round_trip)[1])
        self._limited_until = self._deliveries.expected
        self._clock.stop()
        return passed

    def _notice(self, part: Flight, index: int, round_trip: float, fresh: int, more: bool) -> Notice:
        """Return when losses are noticed: packets of the next step follow at once, and reveal those at the end."""
        need = 1 if self._flight.repairs else DUPLICATES
        follow = max(0, part.packets - part.first_lost - part.lost)
        if not more and follow + fresh < need:
            return super()._notice(part, index, round_trip, fresh, more)
        pace = max(self._window.packet_seconds, self._bottleneck.packet_seconds)
        last_at = part.ack_last + need * pace
        if follow < need:
            return Notice(part.ack_last + (need - follow) * pace, part.lost, last_at if part.lost > 1 else -math.inf)
        return Notice(part.ack_of(part.first_lost + need), part.lost, last_at if part.lost > 1 else -math.inf)

    def _ack_before(self, part: Flight) -> float:
        """Return when the packet before the first lost one is acknowledged, of this step or an earlier one."""
        return super()._ack_before(part) if part.first_lost else self._deliveries.last_ack(part.ack_first)

    def _learn(self, now: float) -> None:
        """Take the measurements that are complete by a time."""
        steps, deliveries = self._steps, self._deliveries
        while steps and steps[0].at <= now:
            step = steps.popleft()
            total = deliveries.acked(step.at)
            self._window.delivered(
                Delivery(
                    step.at,
                    step.sent_at,
                    total,
                    step.total_before,
                    step.at - step.acked_at,
                    total - self._learnt,
                    step.round_trip,
                    deliveries.in_flight(now),
                    step.lost,
                    step.mended_at,
                    step.is_app_limited,
                )
            )
            self._learnt = total
        deliveries.forget(now)
