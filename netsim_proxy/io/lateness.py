"""Lateness of deliveries, counted and logged, so that no measurement is silently wrong."""

from bisect import bisect_left
from typing import Final

import structlog

from hypergpu.common.clock import Clock, monotonic

BUCKETS_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
DEFAULT_BOUND_SECONDS: Final = 0.01
_WARN_EVERY_SECONDS: Final = 10.0

log = structlog.get_logger()


class DeliveryLateness:
    """Histogram of the lateness of deliveries; logs those later than `bound_seconds`."""

    def __init__(self, bound_seconds: float = DEFAULT_BOUND_SECONDS, clock: Clock = monotonic) -> None:
        self.bound_seconds = bound_seconds
        self.counts = [0] * (len(BUCKETS_SECONDS) + 1)
        self.sum_seconds = 0.0
        self.worst_seconds = 0.0
        self.beyond_bound = 0
        self._clock = clock
        self._warned_at = -_WARN_EVERY_SECONDS

    def observe(self, late_seconds: float) -> None:
        """Record the lateness of a delivery."""
        self.counts[bisect_left(BUCKETS_SECONDS, late_seconds)] += 1
        self.sum_seconds += late_seconds
        self.worst_seconds = max(self.worst_seconds, late_seconds)
        if late_seconds > self.bound_seconds:
            self.beyond_bound += 1
            if self._clock() - self._warned_at >= _WARN_EVERY_SECONDS:
                self._warned_at = self._clock()
                self.report()

    def report(self) -> None:
        """Log the number of deliveries that were too late so far, if any."""
        if self.beyond_bound:
            log.warning(
                "deliveries were late: the network was slower than configured",
                late=self.beyond_bound,
                deliveries=sum(self.counts),
                bound_ms=round(self.bound_seconds * 1000, 3),
                worst_ms=round(self.worst_seconds * 1000, 3),
            )
