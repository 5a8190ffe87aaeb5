"""What-if: a run that goes on in virtual time, as it is and with another configuration, by pairs of seeds.

Times are corrected by the factor between the measured seconds per round and those of the fork as it is, so that what is
wrong with the fork in both ways cancels out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import LOSS
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.simulation.fork.fork import Fork
from hypergpu.simulation.fork.links import HeldDecisions, rows_of
from hypergpu.simulation.fork.state import Row, figures_of
from hypergpu.simulation.statistics import SMALLEST, Estimate, geometric_mean_of, mean_of

Rows = Sequence[Row]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Figures of one way to go on, over the seeds."""

    seconds_per_round: Estimate
    bytes_per_round: Estimate
    samples_per_second: Estimate
    metric: Estimate
    """Metric after the time that is looked ahead; unknown where the fork does not learn."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {name: getattr(self, name).to_dict() for name in self.__slots__}


@dataclass(frozen=True)
class WhatIf:
    """A run as it is, and as it would be."""

    fork: Fork
    now: Prediction
    """The run as it is, with the decisions of the last rounds."""
    then: Prediction
    """With the other configuration."""
    ratio: Estimate
    """Seconds per round with the other configuration over those as it is."""
    seconds: float
    """Time that is looked ahead."""
    correction: float
    """Measured seconds per round over those of the fork as it is, by which all times are multiplied."""
    courses: tuple[Rows, Rows]
    """Rounds of the first seed as it is and with the other configuration, before the correction."""
    starts_afresh: bool = False
    """True if a policy decides in the other configuration, which knows nothing of the run."""

    @property
    def unknown(self) -> list[str]:
        """Gaps in the knowledge of the prediction, one sentence each."""
        found = list(self.fork.unknown)
        if self.starts_afresh:
            found.insert(0, "what the policy has learnt in the run: it starts afresh")
        return found

    @property
    def error(self) -> float:
        """Error of the fork as it is, before the correction."""
        return abs(1 / self.correction - 1)


def what_if(
    forked: Fork,
    config: SystemConfig,
    *,
    rounds: int = 20,
    seeds: int = 3,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> WhatIf:
    """Return what another configuration would change.

    Args:
        forked: the run in virtual time.
        config: the other configuration; a policy starts without the experience of the run.
        rounds: rounds to look ahead.
        seeds: runs of each way; runs of one seed form a pair.
        progress: called with the number of runs that are done, and of all runs.

    Raises:
        ConfigError: a configuration that cannot be simulated.
        InvalidInput: no round was finished with it.
    """
    runs: tuple[list[Rows], list[Rows]] = ([], [])
    for number in range(seeds):
        seed = forked.state.config.training.seed + number
        held = HeldDecisions(forked.state, rounds)
        runs[0].append(rows_of(forked.scenario_with(forked.state.config, rounds, seed), forked.compute, held))
        progress(2 * number + 1, 2 * seeds)
        runs[1].append(rows_of(forked.scenario_with(config, rounds, seed), forked.compute))
        progress(2 * number + 2, 2 * seeds)
    if not all(map(all, runs)):
        raise InvalidInput("the other configuration finished no round in virtual time")
    per_round = [[figures_of(rows).seconds_per_round for rows in each] for each in runs]
    correction = forked.state.figures.seconds_per_round / max(fmean(per_round[0]), SMALLEST)
    seconds = correction * min(_lasted(rows) for rows in (*runs[0], *runs[1]))
    now, then = (_prediction(forked, each, seconds, correction) for each in runs)
    ratio = geometric_mean_of([b / max(a, SMALLEST) for a, b in zip(*per_round, strict=True)])
    adapts = config.orchestrator.policy is not AdaptationPolicy.NONE
    return WhatIf(forked, now, then, ratio, seconds, correction, (runs[0][0], runs[1][0]), adapts)


def _prediction(forked: Fork, runs: Sequence[Rows], seconds: float, correction: float) -> Prediction:
    figures = [figures_of(rows) for rows in runs]
    ends = [value for rows in runs if (value := _metric_at(rows, seconds / correction)) is not None]
    return Prediction(
        mean_of([correction * each.seconds_per_round for each in figures]),
        mean_of([each.bytes_per_round for each in figures]),
        mean_of([each.samples_per_second / correction for each in figures]),
        mean_of(ends) if forked.learns else Estimate(),
    )


def _began(rows: Rows) -> float:
    return float(rows[0]["ended_seconds"] - rows[0]["seconds"])


def _lasted(rows: Rows) -> float:
    return float(rows[-1]["ended_seconds"]) - _began(rows)


def _metric_at(rows: Rows, seconds: float) -> float | None:
    """Return the last value of the metric that was evaluated within so many seconds; of the loss if there is none."""
    name = "accuracy" if "accuracy" in rows[0] else LOSS.name
    until = _began(rows) + seconds + 1e-6
    known = (row[name] for row in reversed(rows) if row["ended_seconds"] <= until and row[name] is not None)
    return next(known, None)
