"""The drop-tail queue that the TCP flows of one direction of a link share.

A flow commits its packets ahead of time, a flight at a time: so many, evenly over some seconds. The queue is the fluid
that these arrivals make: its length falls by one packet per service time, and never below 0. A flight sees the arrivals
that are committed so far, and those that are committed later see it. A flow that is alone keeps the queue by itself
(`TcpFlow`), which is faster, and only records its arrivals here for a flow that joins it.
"""

import math
from bisect import insort
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from hypergpu.netsim_proxy.link.tcp import TcpFlow

_UNLIMITED: Final = 1 << 30


Arrivals = tuple[float, float, float, float]
"""Packets of one flight: when the first and the last arrive, how many, and the queue that the first one meets."""


class Passage(NamedTuple):
    """Passage of a flight: packets ahead of its first and its last packet, packets dropped, and the first of these."""

    first_queue: float
    last_queue: float
    dropped: int
    first_dropped: int


class Bottleneck:
    """Queue of one direction.

    Attributes:
        flows: flows by connection.
        busy_until: time when the last packet leaves it.
        is_shared: whether several flows have packets in it.
        recorded: flights of a flow that is alone, for a flow that joins it.
    """

    __slots__ = (
        "_drop_credit", "_events", "_queue", "_rate", "_since", "busy_until", "flows", "is_shared", "packet_seconds",
        "queue_packets", "recorded",
    )  # fmt: skip

    def __init__(self) -> None:
        self.packet_seconds = 0.0
        self.queue_packets = _UNLIMITED
        self.flows: dict[int, TcpFlow] = {}
        self.recorded: list[Arrivals] = []
        self.settle()

    def settle(self) -> None:
        """Empty the queue."""
        self.busy_until = -math.inf
        self.is_shared = False
        self.recorded.clear()
        self._since = -math.inf
        self._queue = self._rate = self._drop_credit = 0.0
        self._events: list[tuple[float, float, float]] = []

    def set_path(self, packet_seconds: float, queue_packets: int, now: float) -> None:
        """Change the service time of a packet and the capacity of the queue."""
        if self.is_shared:
            self._advance(now)
        self.packet_seconds, self.queue_packets = packet_seconds, queue_packets

    def join(self, flow: "TcpFlow", now: float) -> None:
        """Let a flow send: it shares the queue if packets of another one are still to leave it."""
        flows = self.flows
        alone = len(flows) < 2 or not any(other.busy_until > now for other in flows.values() if other is not flow)
        if alone or not self.packet_seconds:
            recorded = self.recorded
            while len(recorded) > 1 and recorded[1][0] <= now:
                del recorded[0]
            self.is_shared = False
            return
        if not self.is_shared:
            self._begin_sharing(now)
        self._advance(now)

    def queue_at(self, at: float) -> float:
        """Return how many packets a packet that arrives at `at` would meet."""
        if self.busy_until <= at or not self.packet_seconds:
            return 0.0
        if self.is_shared:
            return self._walk(at)[0]
        for begin, end, packets, queue in reversed(self.recorded):
            if begin <= at:
                arrived = packets * (min(1.0, (at - begin) / (end - begin)) if end > begin else 1.0)
                return max(0.0, queue + arrived - (at - begin) / self.packet_seconds)
        return 0.0

    def admit(self, begin: float, span: float, packets: int, *, may_drop: bool = True, short: float = 0.0) -> Passage:
        """Let `packets` in that arrive evenly from `begin` for `span` seconds, and drop what overflows.

        `short` is the share of a packet that the last one lacks.
        """
        queue, at, rate, index = self._walk(begin)
        limit = self.queue_packets if may_drop else _UNLIMITED
        first_queue = queue
        if span <= 0:
            dropped = min(max(0, math.ceil(queue + packets - limit)), packets - 1 if queue + 1 <= limit else packets)
            passed = packets - dropped
            self._commit(begin, 0.0, passed - short)
            return Passage(first_queue, queue + max(0, passed - 1), dropped, passed)
        own, service, end = (packets - short) / span, 1 / self.packet_seconds, begin + span
        overflow, overflowed_at = 0.0, end
        while True:
            event = self._events[index] if index < len(self._events) and self._events[index][0] < end else None
            until = event[0] if event else end
            before, growth = queue, rate + own - service
            queue += growth * (until - at)
            if queue > limit:
                excess = min(queue - limit, own * (until - at))
                overflow += excess
                overflowed_at = min(overflowed_at, at + max(0.0, limit - before) / growth if growth > 0 else at)
                queue -= excess
            queue, at = max(0.0, queue), until
            if event is None:
                break
            queue += event[2]
            rate += event[1]
            index += 1
        self._drop_credit += overflow
        dropped = min(int(self._drop_credit), packets)
        self._drop_credit -= dropped
        passed = packets - dropped
        first_dropped = min(int((overflowed_at - begin) * own), passed)
        self._commit(begin, span, passed - short)
        return Passage(first_queue, queue, dropped, first_dropped)

    def _commit(self, begin: float, span: float, packets: float) -> None:
        if packets <= 0:
            return
        if span > 0:
            insort(self._events, (begin, packets / span, 0.0))
            insort(self._events, (begin + span, -packets / span, 0.0))
        else:
            insort(self._events, (begin, 0.0, packets))

    def _begin_sharing(self, now: float) -> None:
        """Start from the flights that a lone flow has recorded."""
        self.is_shared = True
        self._events.clear()
        self._since, self._queue, self._rate = now, 0.0, 0.0
        if self.recorded and self.recorded[0][0] <= now:
            self._since, _, _, self._queue = self.recorded[0]
        for begin, end, packets, _ in self.recorded:
            self._commit(begin, end - begin, packets)
        self.recorded.clear()

    def _advance(self, now: float) -> None:
        self._queue, self._since, self._rate, passed = self._walk(now)
        del self._events[:passed]

    def _walk(self, to: float) -> tuple[float, float, float, int]:
        """Return the queue at a time, that time, the rate of arrivals then, and the number of events before it."""
        queue, at, rate, service = self._queue, self._since, self._rate, 1 / self.packet_seconds
        if to < at:
            return queue, at, rate, 0
        index = 0
        for index, (time, change, burst) in enumerate(self._events):  # noqa: B007 - the index of the first later one
            if time > to:
                break
            queue = max(0.0, queue + (rate - service) * (time - at)) + burst
            rate += change
            at = time
        else:
            index = len(self._events)
        return max(0.0, queue + (rate - service) * (to - at)), to, rate, index
