"""Forecasts of a rehearsal: a copy of the run's adaptation goes on in virtual time, with each candidate held.

All candidates run on one seed; then the best of each kind together; then the best few on other seeds, so that the
figures of the winner are not the luck that made it win. Progress per second is compared by pairs of seeds with that of
the adaptation as it is, so that what is wrong with the fork in both cancels out.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean, stdev
from typing import Final

from hypergpu.coordinator.core.rehearsal import NOTHING_HELD, Forecast, HeldSetting, RehearsalRequest, Worth
from hypergpu.simulation.fork.fork import fork
from hypergpu.simulation.fork.state import RunState
from hypergpu.simulation.rehearsal.continuation import Continuation
from hypergpu.simulation.statistics import SMALLEST

_FINALISTS: Final = 3
_SEEDS: Final = (1, 2, 3, 4)
"""Seeds of the finalists; all candidates run on seed 0."""


class Rehearsal:
    """Rehearsal of a request.

    Args:
        state: of the run.
        adaptation: packed adaptation of the run.
        request: changes to try.
        worth: figures by which rounds are valued.
    """

    def __init__(self, state: RunState, adaptation: bytes, request: RehearsalRequest, worth: Worth) -> None:
        self._continuation = Continuation(fork(state), adaptation, request)
        self._candidates, self._worth = request.candidates, worth
        self._rates: dict[tuple[HeldSetting, int], float] = {}

    @property
    def runs(self) -> int:
        """Number of runs so far, beside those of the fork."""
        return len(self._rates)

    def forecasts(self) -> tuple[Forecast, ...]:
        """Return the forecasts of the best settings, the best first; none if no change is better on seed 0."""
        gains = {each: self._gain(each, 0) for each in self._candidates}
        for each in _together(gains):
            gains[each] = self._gain(each, 0)
        better = sorted((each for each, gain in gains.items() if gain > 1.0), key=lambda each: -gains[each])
        found = [self._forecast(each) for each in better[:_FINALISTS]]
        return tuple(sorted(found, key=lambda each: -each.gain))

    def _forecast(self, change: HeldSetting) -> Forecast:
        gains = [self._gain(change, seed) for seed in _SEEDS]
        return Forecast(change, fmean(gains), stdev(gains))

    def _gain(self, change: HeldSetting, seed: int) -> float:
        return self._rate(change, seed) / max(self._rate(NOTHING_HELD, seed), SMALLEST)

    def _rate(self, change: HeldSetting, seed: int) -> float:
        """Return the progress per second with a change."""
        if (change, seed) not in self._rates:
            self._rates[change, seed] = self._continuation.run(change, seed, self._worth)
        return self._rates[change, seed]


def _together(gains: Mapping[HeldSetting, float]) -> Iterator[HeldSetting]:
    """Yield the best change with the best ones of the other kinds, added one by one."""
    best: dict[tuple[bool, ...], HeldSetting] = {}
    for each in sorted(gains, key=lambda each: -gains[each]):
        kind = (each.local_steps is None, each.close_share is None, each.codecs is None)
        if gains[each] > 1.0:
            best.setdefault(kind, each)
    whole = NOTHING_HELD
    for number, each in enumerate(best.values()):
        whole = whole.with_(each)
        if number:
            yield whole
