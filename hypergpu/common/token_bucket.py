"""Token buckets: budgets of calls, as pure functions of a bucket's state and the time."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

MAX_CALLERS: Final = 10_000
"""Buckets that are kept; beyond them the one that was unused longest is forgotten, which makes it a full one."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Calls that one caller may make."""

    rate: float
    """Calls per second, in the long run."""
    burst: float
    """Calls at once."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """State of a bucket: the calls that are left, and the time at which that was counted."""

    left: float
    at: float


def spend(bucket: Bucket | None, budget: Budget, now: float) -> tuple[Bucket, float]:
    """Return the bucket after a call, and the seconds until one is permitted: 0 = this one is.

    A bucket that does not exist yet is full. A call that is not permitted takes nothing.
    """
    if bucket is None:
        bucket = Bucket(budget.burst, now)
    left = min(budget.burst, bucket.left + max(0.0, now - bucket.at) * budget.rate)
    at = max(now, bucket.at)
    if left < 1.0:
        return Bucket(left, at), (1.0 - left) / budget.rate
    return Bucket(left - 1.0, at), 0.0


class Budgets:
    """Buckets of many callers, in bounded memory."""

    def __init__(self, limit: int = MAX_CALLERS) -> None:
        self._limit = limit
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def spend(self, caller: Hashable, budget: Budget, now: float) -> float:
        """Count a call; return the seconds until one is permitted: 0 = this one is."""
        bucket, wait = spend(self._buckets.get(caller), budget, now)
        self._buckets[caller] = bucket
        self._buckets.move_to_end(caller)
        if len(self._buckets) > self._limit:
            self._buckets.popitem(last=False)
        return wait
