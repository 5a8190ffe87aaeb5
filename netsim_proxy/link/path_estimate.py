"""Estimates of a path from deliveries: its rate, whether it is full, and whether a policer limits it.

All rates are in packets per second.
"""

import math
from collections import deque
from typing import Final, NamedTuple

_FILTER_ROUNDS: Final = 10
_FULL_GROWTH: Final = 1.25
_FULL_ROUNDS: Final = 3
_POLICED_LOSS: Final = 50 / 256
"""Lost packets by delivered ones from which an interval counts as policed."""
_POLICED_LEAST_ROUNDS: Final = 4
_POLICED_MOST_ROUNDS: Final = 16
_POLICED_RATIO: Final = 1 / 8
"""Largest difference between two intervals in a row, relative to the first."""
_POLICED_HELD_ROUNDS: Final = 48


class Delivery(NamedTuple):
    """Measurement when the last packet of a step is acknowledged (draft-cheng-iccrg-delivery-rate-estimation).

    A step is a number of packets that were sent at one pace.
    """

    at: float
    """Time of the acknowledgement."""
    sent_at: float
    """Time at which that packet was sent."""
    total: float
    """Packets delivered until `at`, since the connection began."""
    total_before: float
    """Packets delivered until that packet was sent."""
    seconds: float
    """Time that the deliveries between took."""
    acked: float
    """Packets delivered since the last measurement."""
    round_trip: float
    in_flight: float
    """Packets in flight after it."""
    lost: int = 0
    """Packets of the step that were lost."""
    mended_at: float = -math.inf
    """Time at which these are acknowledged after all."""
    is_app_limited: bool = False
    """True if the sender had nothing to send for a part of the time."""

    @property
    def rate(self) -> float:
        """Packets per second."""
        return (self.total - self.total_before) / max(self.seconds, 1e-9)


class Rounds:
    """Round trips counted by packets: a round ends with the first packet that was sent after the last one's end."""

    __slots__ = ("_end", "count")

    def __init__(self) -> None:
        self.count = 0
        self._end = 0.0

    def note(self, delivery: Delivery) -> bool:
        """Return whether a round has ended."""
        if delivery.total_before < self._end:
            return False
        self._end = delivery.total
        self.count += 1
        return True

    def restart(self, total: float) -> None:
        """Begin a round now."""
        self._end = total


class RateFilter:
    """Highest rate of the last ten rounds."""

    __slots__ = ("_rates",)

    def __init__(self) -> None:
        self._rates: deque[tuple[int, float]] = deque()

    @property
    def most(self) -> float:
        """Highest rate; 0 before the first."""
        return self._rates[0][1] if self._rates else 0.0

    def note(self, delivery: Delivery, rounds: int) -> None:
        """Take a measurement; one without enough data to send counts only if it is the highest."""
        rates, rate = self._rates, delivery.rate
        if delivery.is_app_limited and rate < self.most:
            return
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((rounds, rate))
        while rates[0][0] <= rounds - _FILTER_ROUNDS:
            rates.popleft()


class FullPipe:
    """Test of a full path: three rounds have raised the rate by less than a quarter.

    Attributes:
        is_full: whether it is.
    """

    __slots__ = ("_most", "_rounds", "is_full")

    def __init__(self) -> None:
        self.is_full = False
        self.forget()

    def forget(self) -> None:
        """Begin to count again, after a timeout."""
        self._most, self._rounds = 0.0, 0

    def note_round(self, rate: float) -> None:
        """Take the highest rate at the end of a round."""
        if self.is_full:
            return
        if rate >= _FULL_GROWTH * self._most:
            self._most, self._rounds = rate, 0
            return
        self._rounds += 1
        self.is_full = self._rounds >= _FULL_ROUNDS


class Policer:
    """Rate of a token-bucket policer: two intervals in a row with high loss and about the same rate show one.

    Attributes:
        rate: rate of the path while one is assumed; 0 otherwise.
    """

    __slots__ = ("_began", "_last", "_lost", "_rounds", "_total", "rate")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Assume none."""
        self.rate = self._last = 0.0
        self._began = -math.inf  # -inf: the first loss begins an interval
        self._lost = self._rounds = 0
        self._total = 0.0

    def note(self, delivery: Delivery, *, is_round_end: bool, cruises: bool) -> bool:
        """Take a measurement; return whether an assumed policer has just been given up."""
        if self.rate:
            self._rounds += is_round_end and cruises
            if self._rounds < _POLICED_HELD_ROUNDS:
                return False
            self.forget()
            return True
        if self._began == -math.inf:
            if delivery.lost:
                self._begin(delivery)
            return False
        self._lost += delivery.lost
        self._rounds += is_round_end
        if delivery.is_app_limited or self._rounds > _POLICED_MOST_ROUNDS:
            self.forget()
        elif self._rounds >= _POLICED_LEAST_ROUNDS and delivery.lost:
            self._end(delivery)
        return False

    def _begin(self, delivery: Delivery) -> None:
        self._began, self._total, self._lost, self._rounds = delivery.at, delivery.total, 0, 0

    def _end(self, delivery: Delivery) -> None:
        delivered, seconds = delivery.total - self._total, delivery.at - self._began
        if delivered <= 0 or seconds < 0.001 or self._lost < _POLICED_LOSS * delivered:
            return
        rate = delivered / seconds
        if self._last and abs(rate - self._last) <= _POLICED_RATIO * self._last:
            self.rate, self._rounds = (rate + self._last) / 2, 0
            return
        self._last = rate
        self._begin(delivery)
