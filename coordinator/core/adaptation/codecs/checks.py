"""Check of what changed codecs save, against what was expected.

Like is compared with like: only the directions whose codec has changed, only transfers over the same connections, and
only rounds in which the payload is the one that the codec stands for. Rounds differ, because losses are random: a
verdict waits until the standard error of the measured saving is small against the expected one, or for the most rounds.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from hypergpu.coordinator.core.adaptation.codecs.direction_times import (
    DIRECTIONS,
    Direction,
    DirectionTimes,
    Kind,
    has_changed,
)
from hypergpu.coordinator.core.adaptation.codecs.noise import UPDATE_CODECS
from hypergpu.coordinator.core.adaptation.codecs.sizes import CodecPair
from hypergpu.coordinator.core.rounds.events import Contribution

_LEAST_ROUNDS: Final = 2
_MOST_ROUNDS: Final = 12
"""Rounds with the changed codecs before a verdict, at least and at most."""
_HELD_ROUNDS: Final = 4
"""Rounds of a check in which nothing else about the transfers is tried."""
_CERTAIN: Final = 0.08
"""Standard error of the measured saving, as a share of the expected one, with which a verdict is certain."""
_LEAST_SAVING: Final = 0.5
"""Share of the expected saving below which a change has failed, if that is no accident."""
_FAILED: Final = 2.0
"""Standard errors that the saving must be below it for a verdict before the most rounds."""
_ASSUMED_SPREAD: Final = 0.1
"""Standard deviation of a transfer's time, as a share of it, before it is measured; it counts as one sample."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a change of a node's codecs."""

    node: str
    before: CodecPair
    """Codecs before the change."""
    expected_seconds: float
    """Saving of a round that the decision expected."""
    measured_seconds: float
    """Mean time before less mean time since, in the directions that have changed."""
    error_seconds: float
    """Standard error of it."""
    rounds: int
    """Measured rounds since the change."""
    has_failed: bool

    def figures(self) -> dict[str, float | int | str]:
        """Return the savings by name."""
        return {
            "expected_saving_seconds": self.expected_seconds,
            "measured_saving_seconds": self.measured_seconds,
            "error_seconds": self.error_seconds,
            "measured_rounds": self.rounds,
        }


@dataclass(slots=True)
class _Compared:
    """Times of one direction before and since a change."""

    before: Sequence[float]
    since: Kind
    """Kind of the transfers since the change."""
    seconds: list[float] = field(default_factory=list)

    @property
    def saving(self) -> float:
        return fmean(self.before) - fmean(self.seconds)

    def error(self) -> float:
        """Return the standard error of the saving."""
        samples = [self.before, self.seconds]
        squares = sum((each / fmean(part) - 1.0) ** 2 for part in samples for each in part if fmean(part) > 0.0)
        spread = (_ASSUMED_SPREAD**2 + squares) / (1 + sum(len(part) - 1 for part in samples))
        return math.sqrt(spread * sum(fmean(part) ** 2 / len(part) for part in samples))


@dataclass(slots=True)
class _Check:
    before: CodecPair
    expected: float
    directions: Mapping[Direction, _Compared]

    @property
    def rounds(self) -> int:
        return min(len(each.seconds) for each in self.directions.values())


class SavingChecks:
    """Checks of the nodes whose codecs have changed lately."""

    def __init__(self) -> None:
        self._times = DirectionTimes()
        self._sent: Mapping[str, int] = {}
        """Codec in which the parameters of the running round travel to each node."""
        self._checks: dict[str, _Check] = {}

    def begin(self, node: str, before: CodecPair, after: CodecPair, expected_seconds: float) -> None:
        """Begin the check of a node, if there is something to compare with."""
        self.cancel(node)
        directions: dict[Direction, _Compared] = {}
        for direction in DIRECTIONS:
            old, new = before.of(direction), after.of(direction)
            kind, seconds = self._times.of(node, direction)
            if old == new:
                continue
            if kind is None or kind.codec != old or not seconds:
                return
            directions[direction] = _Compared(seconds, Kind(new, kind.connections))
        if directions:
            self._checks[node] = _Check(before, expected_seconds, directions)

    def can_begin(self, node: str, direction: Direction, connections: int) -> bool:
        """Return whether transfers over so many connections in a direction have something to be compared with."""
        kind, seconds = self._times.of(node, direction)
        return kind is not None and kind.connections == connections and bool(seconds)

    def cancel(self, node: str) -> None:
        """End the check of a node without a verdict."""
        self._checks.pop(node, None)

    @property
    def directions(self) -> Mapping[str, Collection[Direction]]:
        """Directions in which each node is checked that has not been measured for long."""
        return {node: check.directions.keys() for node, check in self._checks.items() if check.rounds < _HELD_ROUNDS}

    def begin_round(self, sent: Mapping[str, int]) -> None:
        """Set the codec in which the parameters of the coming round travel to each node; empty without a round."""
        self._sent = sent

    def observe(self, contribution: Contribution) -> Verdict | None:
        """Record the transfers of a node in the round that ends; return the verdict on its change, once it is known."""
        node, connections = contribution.node, contribution.connections
        if node not in self._sent:
            return None
        kinds: dict[Direction, Kind] = {
            "up": Kind(UPDATE_CODECS.index(contribution.codec), connections.up),
            "down": Kind(self._sent[node], connections.down),
        }
        up = contribution.upload_seconds
        seconds: dict[Direction, float] = {"up": up, "down": contribution.waiting_seconds - up}
        verdict = self._compare(node, kinds, seconds)
        for direction in DIRECTIONS:
            self._times.record(node, direction, kinds[direction], seconds[direction])
        return verdict

    def _compare(
        self, node: str, kinds: Mapping[Direction, Kind], seconds: Mapping[Direction, float]
    ) -> Verdict | None:
        """Compare a node's transfers of one round with those before; return the verdict, once it is known.

        Over other connections, or another link, nothing can be compared any more, and the check ends.
        """
        check = self._checks.get(node)
        if check is None:
            return None
        if any(kinds[direction].connections != each.since.connections for direction, each in check.directions.items()):
            self.cancel(node)
            return None
        for direction, each in check.directions.items():
            if kinds[direction] == each.since:  # the first difference of the parameters follows the whole ones
                each.seconds.append(seconds[direction])
            if has_changed(each.seconds):
                self.cancel(node)
                return None
        return self._verdict(node, check) if check.rounds >= _LEAST_ROUNDS else None

    def _verdict(self, node: str, check: _Check) -> Verdict | None:
        measured = sum(each.saving for each in check.directions.values())
        error = math.hypot(*(each.error() for each in check.directions.values()))
        missing = _LEAST_SAVING * check.expected - measured
        is_due = check.rounds >= _MOST_ROUNDS
        if not is_due and error > _CERTAIN * check.expected and missing <= _FAILED * error:
            return None
        self.cancel(node)
        has_failed = missing > error
        return Verdict(node, check.before, check.expected, measured, error, check.rounds, has_failed)
