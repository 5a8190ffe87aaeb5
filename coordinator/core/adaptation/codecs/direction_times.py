"""Times of each node's transfers by direction: those with one payload over the same connections."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal, NamedTuple

from hypergpu.coordinator.core.links.rates import SHIFT, SINCE_CHANGE

Direction = Literal["up", "down"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("up", "down")
_KEPT: Final = 16
"""Latest times of one kind that are kept."""


class Kind(NamedTuple):
    """Transfers whose times can be compared."""

    codec: int
    """Place of the codec of their payload."""
    connections: int


@dataclass(slots=True)
class _Latest:
    kind: Kind
    connections: int
    """Connections that exist."""
    seconds: list[float] = field(default_factory=list)


def has_changed(seconds: Sequence[float]) -> bool:
    """Return whether the latest times, as many as show a change of a rate, are far from the usual one before them."""
    before, latest = seconds[:-SINCE_CHANGE], seconds[-SINCE_CHANGE:]
    if not before:
        return False
    usual = median(before)
    return min(latest) > SHIFT * usual or SHIFT * max(latest) < usual


class DirectionTimes:
    """Times of each node's latest transfers in each direction, as long as they were of one kind and the link the same.

    The first transfer over several new connections does not count: on a lossy link it is faster than later ones. That
    over a single connection counts: most models that have one are small, and their codecs change after it.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[str, Direction], _Latest] = {}

    def record(self, node: str, direction: Direction, kind: Kind, seconds: float) -> None:
        """Record the time of a transfer."""
        latest = self._latest.get((node, direction))
        known = latest.connections if latest is not None else 0
        if latest is None or latest.kind != kind:
            latest = self._latest[node, direction] = _Latest(kind, kind.connections)
        if kind.connections <= max(known, 1):
            latest.seconds.append(seconds)
            del latest.seconds[: -SINCE_CHANGE if has_changed(latest.seconds) else -_KEPT]

    def of(self, node: str, direction: Direction) -> tuple[Kind | None, list[float]]:
        """Return the kind of the latest transfers, and their times, oldest first; no kind before the first transfer."""
        latest = self._latest.get((node, direction))
        return (None, []) if latest is None else (latest.kind, list(latest.seconds))
