"""Race of candidate settings in virtual time: those that can no longer win are cut off.

Successive halving over seeds (Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016). Every run ends at the target, and no run goes on beyond the cost of the best one so far: a
candidate whose run was cut off has lost it. First all candidates run on one seed, for half of the time that the best
takes; then the best quarter on another one, to the end; then a few finalists, with the references, once on each
reported seed. Those seeds are no others' seeds, so that the winner's figures are not the luck that made it win.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import SMALLEST

RunAll = Callable[[Sequence[Scenario]], list[Outcome]]


class Contender(Protocol):
    """Way to run a scenario."""

    @property
    def label(self) -> str:
        """Name of the setting."""
        ...

    def of(self, scenario: Scenario, seed: int) -> Scenario:
        """Return the scenario, run this way."""
        ...


Racer = TypeVar("Racer", bound=Contender)
SEED_OFFSET: Final = 10_000
"""Distance of the seeds of the first stages from the reported ones; as many can be reported at most."""
FINALISTS: Final = 3
_SCREENED: Final = 0.5
"""Length of a run of the first stage, in costs of the best run so far."""
_KEPT: Final = 4
"""One of so many candidates is kept after the first stage."""
_PATIENCE: Final = 3.0
"""Length of a reported run, in costs of the best run of the race: one beyond that has missed the target."""
_REFERENCE: Final = 1000.0
"""The same of the first reference, whose own cost is asked for."""
_OTHER_SEED: Final = 1.5
"""Cost of the best run on a new seed that is allowed for, in costs on the seed before."""
_CHUNK: Final = 8
"""Runs between two looks at the best cost so far."""


@dataclass(frozen=True)
class Loser(Generic[Racer]):
    """A candidate that left the race, and where."""

    candidate: Racer
    stage: int
    """1, 2 or 3: all candidates, the best quarter, the finalists."""
    why: str


@dataclass(frozen=True)
class Raced(Generic[Racer]):
    """Outcomes of a race."""

    finalists: Sequence[tuple[Racer, Sequence[Outcome]]]
    """Finalists with their runs on the reported seeds; the best first."""
    references: Sequence[tuple[Racer, Sequence[Outcome]]]
    losers: Sequence[Loser[Racer]]
    candidates: int
    runs: int
    seeds: Sequence[int]
    """Reported seeds."""


@dataclass(frozen=True)
class Costs:
    """Cost of a run: by default the seconds to its target."""

    time: Callable[[Outcome], float | None] = lambda outcome: outcome.time_to_target_seconds
    """Seconds that count of a run; None if it missed the target."""
    per_second: Callable[[Contender], float] = lambda _: 1.0
    """Cost of a second of a candidate's run."""
    beside: Callable[[Outcome], float] = lambda _: 0.0
    """Further cost of a run, such as that of its traffic."""

    def of(self, candidate: Contender, outcome: Outcome) -> float | None:
        """Return what reaching the target cost; None if the run missed it."""
        seconds = self.time(outcome)
        return None if seconds is None else seconds * self.per_second(candidate) + self.beside(outcome)

    def seconds(self, candidate: Contender, cost: float) -> float:
        """Return the seconds after which a run of a candidate has cost more than `cost`."""
        rate = self.per_second(candidate)
        return cost / rate if rate > 0 else math.inf


class Race(Generic[Racer]):
    """Race of candidates against references.

    Args:
        scenario: its target is set.
        run_all: runs scenarios and returns their outcomes.
        costs: what is to be small.
    """

    def __init__(self, scenario: Scenario, run_all: RunAll, costs: Costs | None = None) -> None:
        self._scenario = scenario.until_target()
        self._run_all, self._costs = run_all, costs or Costs()
        self._best = math.inf
        self._runs = 0
        self._losers: list[Loser[Racer]] = []

    def run(self, candidates: Sequence[Racer], references: Sequence[Racer], seeds: int) -> Raced[Racer]:
        """Return the finalists and the references, with their runs on as many seeds.

        Args:
            candidates: at least one, in the order in which they are run: the sooner a good one is, the less the others
                take.
            references: ways that are reported beside the finalists; they set the first limit. The first one is run
                to its target, if it has one in any sensible time.
            seeds: number of reported seeds.
        """
        first = self._scenario.seed + SEED_OFFSET
        lasted = [
            (outcome.seconds, each) for each, outcome in self._one_by_one(references or candidates[:1], first, 1.0)
        ]
        if self._best == math.inf:  # nobody reached the target: as long as they tried is enough to compare
            self._best = max(self._costs.per_second(each) * seconds for seconds, each in lasted)
        left = self._stage(1, candidates, first, _SCREENED, max(FINALISTS, len(candidates) // _KEPT))
        left = self._stage(2, left, first + 1, 1.0, FINALISTS)
        reported = [self._scenario.seed + number for number in range(seeds)]
        lengths = [_PATIENCE] * (len(left) + len(references))
        if references:
            lengths[len(left)] = _REFERENCE
        rows = [
            (each, self._timed([each], reported, length * self._best))
            for each, length in zip((*left, *references), lengths, strict=True)
        ]
        finalists = sorted(rows[: len(left)], key=lambda row: self._rank(*row))
        for candidate, outcomes in finalists[1:]:
            self._losers.append(Loser(candidate, 3, self._short(candidate, outcomes)))
        return Raced(finalists, rows[len(left) :], self._losers, len(candidates), self._runs, reported)

    def _stage(self, number: int, tried: Sequence[Racer], seed: int, length: float, kept: int) -> list[Racer]:
        """Run each candidate on one seed; return those that stay in the race, the best first."""
        if number > 1:
            self._best *= _OTHER_SEED
        rows = [(each, [outcome]) for each, outcome in self._one_by_one(tried, seed, length)]
        ranked = sorted(rows, key=lambda row: self._rank(*row))
        for candidate, outcomes in ranked[kept:]:
            self._losers.append(Loser(candidate, number, self._short(candidate, outcomes)))
        return [candidate for candidate, _ in ranked[:kept]]

    def _one_by_one(self, tried: Sequence[Racer], seed: int, length: float) -> Iterator[tuple[Racer, Outcome]]:
        """Yield each candidate with its run, some at once, and tighten the limit in between."""
        for start in range(0, len(tried), _CHUNK):
            chunk = tried[start : start + _CHUNK]
            for candidate, outcome in zip(chunk, self._timed(chunk, [seed], length * self._best), strict=True):
                cost = self._costs.of(candidate, outcome)
                self._best = min(self._best, math.inf if cost is None else cost)
                yield candidate, outcome

    def _timed(self, tried: Sequence[Racer], seeds: Sequence[int], cost: float) -> list[Outcome]:
        """Run candidates on seeds, until a run costs so much."""
        scenarios = []
        for candidate in tried:
            seconds = self._costs.seconds(candidate, cost)
            limited = self._scenario.changed(time_limit_seconds=seconds) if seconds < math.inf else self._scenario
            scenarios += [candidate.of(limited, seed) for seed in seeds]
        self._runs += len(scenarios)
        return self._run_all(scenarios)

    def _rank(self, candidate: Racer, outcomes: Sequence[Outcome]) -> tuple[int, float]:
        return rank_by_cost([self._costs.of(candidate, outcome) for outcome in outcomes], outcomes)

    def _short(self, candidate: Racer, outcomes: Sequence[Outcome]) -> str:
        """Return why a candidate is not the best, in words."""
        missed = sum(self._costs.of(candidate, outcome) is None for outcome in outcomes)
        if not missed:
            return "reached the target later"
        metric, outcome = outcomes[0].metric, outcomes[0]
        return f"was cut off after {outcome.seconds:.4g} s at {metric.label(outcome.final_metric)}"


def runs_of(candidates: int, references: int, seeds: int) -> int:
    """Return how many runs a race takes."""
    second = min(candidates, max(FINALISTS, candidates // _KEPT))
    return max(references, 1) + candidates + second + (min(candidates, FINALISTS) + references) * seeds


def rank_by_cost(costs: Sequence[float | None], outcomes: Sequence[Outcome]) -> tuple[int, float]:
    """Return a key that sorts settings: by runs without the target, then by cost, then by the metric.

    Args:
        costs: cost of each run; None if it missed the target.
        outcomes: the runs.
    """
    missed = costs.count(None)
    if missed:
        return missed, -sum(_shown(outcome) for outcome in outcomes)
    return 0, sum(math.log(max(cost, SMALLEST)) for cost in costs if cost is not None)


def _shown(outcome: Outcome) -> float:
    """Return the last value of the metric, larger if better."""
    metric = outcome.metric
    return -math.inf if outcome.final_metric is None else metric.gain(outcome.final_metric, 0.0)
