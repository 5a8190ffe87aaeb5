"""Rate of a link in one direction, estimated from its transfers.

A transfer of n bytes in T seconds bounds the rate from both sides. It was n / T at least. It may have been higher, if
the sender's congestion window was still growing: in slow start the window doubles with each round trip r, from w. A
sender that sends at rate R once its window has reached R·r loses the K round trips before that in part:

    T = n / R + Σ (r - w·2^k / R), k = 0 … K-1    so    R = (n - w·(2^K - 1)) / (T - K·r)

Where both bounds are nearly the same, the transfer counts as a measurement of the rate, else as a lower bound. The
window w is at least the initial one (RFC 6928), and half of what arrived right before: in slow start the window grows
by each byte that is acknowledged, one round trip later.

The round trip r of the idle link may be unknown, where transfers follow one another without a pause. What arrived
before bounds it as well: if slow start lasted until then, its bytes took k flights, the last of which began k - 1 round
trips after the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import Final, NamedTuple

from hypergpu.common.transfer_meter import Transfer

WINDOW: Final = 8
"""Number of latest transfers of one direction that count."""
TOLERANCE: Final = 1.15
"""Largest factor between the bounds of a measurement; the estimate between them is within 7 % of either."""
SHIFT: Final = 1.5
"""Factor between the rates since a change and those before it."""
SINCE_CHANGE: Final = 2
"""Transfers that show together that the rate has changed. A single one may have met an outage."""
INITIAL_WINDOW_BYTES: Final = 10 * 1448
"""Congestion window of a new connection: 10 segments (RFC 6928). A shorter transfer measures no rate: a single lost
segment may have taken most of its time."""
_CLOCK_SECONDS: Final = 0.001
"""Error of the time of an arrival as an event loop sees it."""
_INITIAL_WINDOWS: Final = 4
"""Initial windows with which slow start may have begun: a transfer may have several connections."""
_MOST_DOUBLINGS: Final = 40


class RateBounds(NamedTuple):
    """Bounds of the rate during one transfer, in bytes per second."""

    low: float
    high: float
    """Infinite if the sender may not have left slow start."""

    @property
    def is_measurement(self) -> bool:
        """True if the bounds are close enough to count as a measurement."""
        return self.high <= TOLERANCE * self.low

    @property
    def middle(self) -> float:
        """Geometric mean of the bounds of a measurement, the lower bound otherwise."""
        return math.sqrt(self.low * self.high) if self.is_measurement else self.low


@dataclass(frozen=True, slots=True)
class LinkRate:
    """Rate of one direction of a link in bytes per second; figures without a measurement are NaN."""

    rate: float = math.nan
    """Median of the latest measurements since the last change of the rate."""
    spread: float = math.nan
    """Half of the interquartile range of these measurements; 0 after a single one."""
    at_least: float = math.nan
    """Highest lower bound since the last change. It is known before the rate if transfers are short."""
    measured_at: float = math.nan
    """Time of the latest transfer that counts."""
    is_provisional: bool = False
    """Only the first transfer is known, or one over another number of connections.

    On a lossy link a first transfer is faster: its connections have not lost much yet."""


UNKNOWN_RATE: Final = LinkRate()


def rate_bounds(transfer: Transfer, round_trip_seconds: float, jitter_seconds: float = 0.0) -> RateBounds:
    """Return the bounds of the rate during a transfer.

    Args:
        transfer: Measurement of its receiver.
        round_trip_seconds: Round trip of the idle link; NaN if unknown, which leaves the rate without an upper bound.
        jitter_seconds: Usual deviation of an arrival.
    """
    nbytes, seconds = transfer.nbytes, transfer.seconds
    error = _CLOCK_SECONDS + (jitter_seconds if jitter_seconds > 0.0 else 0.0)
    low = nbytes / max(seconds, error)
    is_certain = nbytes >= INITIAL_WINDOW_BYTES and seconds > error and nbytes / (seconds - error) <= TOLERANCE * low
    if not is_certain:
        return RateBounds(low, math.inf)
    round_trip_seconds = min(
        _longest_round_trip(transfer), math.inf if math.isnan(round_trip_seconds) else round_trip_seconds
    )
    return RateBounds(low, _rate_after_slow_start(transfer, round_trip_seconds))


def _longest_round_trip(transfer: Transfer) -> float:
    """Return the longest round trip with which slow start may have lasted until the measured part of a transfer."""
    window = _INITIAL_WINDOWS * INITIAL_WINDOW_BYTES
    flights = math.ceil(math.log2(1.0 + transfer.bytes_before / window))
    return transfer.seconds_before / (flights - 1) if flights > 1 else math.inf


def _rate_after_slow_start(transfer: Transfer, round_trip_seconds: float) -> float:
    """Return the rate of a sender in slow start; infinite if its window may not have stopped growing."""
    nbytes, seconds = transfer.nbytes, transfer.seconds
    window_bytes, sent = max(INITIAL_WINDOW_BYTES, transfer.bytes_before / 2), 0.0
    for doublings in range(_MOST_DOUBLINGS):
        left = seconds - doublings * round_trip_seconds if doublings else seconds
        if left <= 0.0 or sent >= nbytes:
            break
        rate = (nbytes - sent) / left
        if rate * round_trip_seconds <= window_bytes:
            return rate
        sent += window_bytes
        window_bytes *= 2
    return math.inf


class RateEstimator:
    """Estimates the rate of one direction of one link.

    The estimate is a median, which one transfer in an outage does not move. The latest two transfers replace all
    earlier ones if both are beyond the range of these by a factor of `SHIFT`, so a collapse counts after two transfers.
    A lower bound counts only above the estimate, which it proves to be too low.

    The first transfer counts only until a second one has measured the rate, and so does that before a `restart`. New
    connections begin in slow start, and on a lossy link their windows shrink over the first megabyte of each: 16 of
    them carry half as much from then on.
    """

    __slots__ = ("_assumed", "_bounds", "_estimated", "_fresh", "_is_oldest_provisional", "_known")

    def __init__(self) -> None:
        self._known: list[tuple[Transfer, float]] = []
        """Transfers since the last change, oldest first, with their times."""
        self._bounds: list[RateBounds] = []
        """Bounds of the rate during each of them."""
        self._fresh: list[tuple[Transfer, float]] = []
        """Transfers since the last estimate."""
        self._assumed = (math.nan, math.nan)
        """Round trip and jitter behind the bounds."""
        self._estimated = UNKNOWN_RATE
        self._is_oldest_provisional = True
        """The oldest known transfer counts until there is another."""

    def record(self, transfer: Transfer, at: float) -> None:
        """Record a transfer that ended at a time."""
        self._fresh.append((transfer, at))
        self._is_oldest_provisional &= len(self._fresh) <= WINDOW
        del self._fresh[:-WINDOW]

    def restart(self) -> None:
        """Forget all transfers but the latest: those before it went over another number of connections."""
        self._fresh = [*self._known, *self._fresh][-1:]
        self._is_oldest_provisional = True
        self._known.clear()
        self._bounds.clear()

    def estimate(self, round_trip_seconds: float, jitter_seconds: float = 0.0) -> LinkRate:
        """Return the rate by all transfers so far; round trip and jitter as in `rate_bounds`."""
        if not (_is_near(round_trip_seconds, self._assumed[0]) and _is_near(jitter_seconds, self._assumed[1])):
            self._assumed = round_trip_seconds, jitter_seconds
            self._bounds = [rate_bounds(transfer, *self._assumed) for transfer, _ in self._known]
        elif not self._fresh:
            return self._estimated
        for entry in self._fresh:
            self._known.append(entry)
            self._bounds.append(rate_bounds(entry[0], *self._assumed))
            first = max(len(self._known) - WINDOW, 0)
            first += _first_since_change(self._bounds[first:])
            self._drop(first)
            if self._is_oldest_provisional and any(each.is_measurement for each in self._bounds[1:]):
                self._drop(1)
        self._fresh.clear()
        self._estimated = self._estimate(self._bounds)
        if self._is_oldest_provisional and len(self._known) == 1:
            self._estimated = replace(self._estimated, is_provisional=True)
        return self._estimated

    def _drop(self, count: int) -> None:
        """Forget the oldest transfers."""
        del self._known[:count], self._bounds[:count]
        self._is_oldest_provisional &= count == 0

    def _estimate(self, bounds: Sequence[RateBounds]) -> LinkRate:
        if not bounds:
            return UNKNOWN_RATE
        at_least = max(each.low for each in bounds)
        usual = median([each.middle for each in bounds if each.is_measurement] or [math.inf])
        counted = [
            (each.middle, at)
            for each, (_, at) in zip(bounds, self._known, strict=True)
            if each.is_measurement or each.low > usual
        ]
        if not counted:
            return LinkRate(at_least=at_least, measured_at=self._known[-1][1])
        values = [value for value, _ in counted]
        return LinkRate(median(values), _half_spread(values), at_least, counted[-1][1])


def _first_since_change(bounds: Sequence[RateBounds]) -> int:
    """Return the index of the first transfer since a change of the rate; 0 without a change."""
    measured = [index for index, each in enumerate(bounds) if each.is_measurement]
    if len(measured) >= SINCE_CHANGE:
        first = measured[-SINCE_CHANGE]
        before = [bounds[index].low for index in measured if index < first]
        least = min(before) if before else max((each.low for each in bounds[:first]), default=0.0)
        if SHIFT * max(bounds[index].high for index in measured[-SINCE_CHANGE:]) < least:
            return first
    first = max(len(bounds) - SINCE_CHANGE, 0)
    most = max((bounds[index].high for index in measured if index < first), default=math.inf)
    return first if min(each.low for each in bounds[first:]) > SHIFT * most else 0


def _is_near(value: float, other: float) -> bool:
    """Return whether two values are within 10 % of one another, or both unknown."""
    return value == other or 0.9 * other <= value <= 1.1 * other or (math.isnan(value) and math.isnan(other))


def _half_spread(values: Sequence[float]) -> float:
    """Return half of the interquartile range of at least one value, interpolated linearly."""
    if len(values) < 2:
        return 0.0
    first, _, third = quantiles(values, n=4, method="inclusive")
    return 0.5 * (third - first)
