"""Sets of byte ranges: what of a payload is still missing, or still to be sent."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class ByteRange(NamedTuple):
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int


class ByteRanges:
    """A set of bytes as disjoint ranges, in order; ranges that touch are one.

    Args:
        ranges: ranges of the set; they may overlap.
    """

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        """Number of bytes in the set."""
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[ByteRange]:
        """Yield the ranges in order."""
        return map(ByteRange, self._starts, self._ends)

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._starts)

    def __bool__(self) -> bool:
        """Return whether there is a byte in the set."""
        return self.total > 0

    def within(self, start: int, end: int) -> list[ByteRange]:
        """Return the parts of the set between two bytes."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return [ByteRange(max(start, self._starts[i]), min(end, self._ends[i])) for i in range(first, last)]

    def add(self, start: int, end: int) -> int:
        """Add a range; return how many of its bytes are new."""
        return self._replace(start, end, keep=True)

    def remove(self, start: int, end: int) -> int:
        """Remove a range; return how many bytes were removed."""
        return self._replace(start, end, keep=False)

    def take(self, nbytes: int) -> ByteRange | None:
        """Remove and return the first range, at most `nbytes` of it; None of an empty set."""
        if not self._starts:
            return None
        start = self._starts[0]
        end = min(self._ends[0], start + nbytes)
        self.remove(start, end)
        return ByteRange(start, end)

    def _replace(self, start: int, end: int, *, keep: bool) -> int:
        """Make the bytes of a range members or not; return how many were not so before."""
        if start >= end:
            return 0
        # The ranges that the new one overlaps, or touches if it is to become one with them.
        first = (bisect_left if keep else bisect_right)(self._ends, start)
        last = (bisect_right if keep else bisect_left)(self._starts, end)
        before = sum(self._ends[i] - self._starts[i] for i in range(first, last))
        low = min(start, self._starts[first]) if first < last else start
        high = max(end, self._ends[last - 1]) if first < last else end
        parts = [(low, high)] if keep else [part for part in ((low, start), (end, high)) if part[0] < part[1]]
        self._starts[first:last] = [part[0] for part in parts]
        self._ends[first:last] = [part[1] for part in parts]
        changed = sum(high - low for low, high in parts) - before
        self.total += changed
        return abs(changed)
