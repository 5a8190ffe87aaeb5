"""Check of what changed codecs save, against what was expected."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from hypergpu.coordinator.core.adaptation.codecs.sizes import CodecPair
from hypergpu.coordinator.core.node_arrays import Floats
from hypergpu.coordinator.core.rounds.events import Contribution

_ROUNDS: Final = 2
"""Measured rounds after a change that show whether it saves what was expected."""
_LEAST_SAVING: Final = 0.5
"""Share of the expected saving below which a change has failed, if the difference is not within the usual spread."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a change of a node's codecs."""

    node: str
    before: CodecPair
    """Codecs before the change."""
    expected_seconds: float
    """Mean saving that was expected."""
    measured_seconds: float
    has_failed: bool

    def figures(self) -> dict[str, float]:
        """Return the savings by name."""
        return {
            "expected_saving_seconds": self.expected_seconds,
            "measured_saving_seconds": self.measured_seconds,
        }


@dataclass(slots=True)
class _Check:
    before: CodecPair
    seconds_before: float
    spread_seconds: float
    """Half of the range of the latest communications before."""
    expected: float = 0.0
    """Saving of the rounds so far."""
    measured: float = 0.0
    rounds: int = 0


class SavingChecks:
    """Checks of the nodes whose codecs have changed lately."""

    def __init__(self) -> None:
        self._checks: dict[str, _Check] = {}
        self._expected: Mapping[str, float] = {}
        """Expected communication of each of these nodes in the running round."""

    def begin(self, node: str, before: CodecPair, samples: Floats) -> None:
        """Begin the check of a node, with samples of its communication before."""
        self._checks[node] = _Check(before, float(samples.mean()), 0.5 * float(np.ptp(samples)))

    def cancel(self, node: str) -> None:
        """End the check of a node without a verdict."""
        self._checks.pop(node, None)

    def of(self, nodes: Iterable[str]) -> list[str]:
        """Return those of the nodes that are checked."""
        return [node for node in nodes if node in self._checks]

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Set the expected communication of the coming round, by node."""
        self._expected = seconds

    def observe(self, contribution: Contribution) -> Verdict | None:
        """Compare a node's communication with what was expected; return the verdict, once it is known."""
        node = contribution.node
        check, expected = self._checks.get(node), self._expected.get(node)
        if check is None or expected is None or expected >= check.seconds_before:
            return None  # the first difference of the parameters follows the whole ones
        check.expected += check.seconds_before - expected
        check.measured += check.seconds_before - contribution.waiting_seconds
        check.rounds += 1
        if check.rounds < _ROUNDS:
            return None
        del self._checks[node]
        missing = (_LEAST_SAVING * check.expected - check.measured) / check.rounds
        expected, measured = check.expected / check.rounds, check.measured / check.rounds
        return Verdict(node, check.before, expected, measured, has_failed=missing > check.spread_seconds)
