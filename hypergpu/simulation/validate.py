"""Validation of the simulator: one scenario run by real processes through the real proxy, and in virtual time.

Two questions, asked apart. Are the times right? The decisions of the real run are replayed, and each round compared
with its real one. Are the decisions the same? The simulator decides for itself, and what it chose is compared. Both
have to be answered better than by a predictor that knows nothing: a constant time, the round before, everybody.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import MetricSpec
from hypergpu.simulation.calibration import calibrate
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.real_run import require_local, run_for_real
from hypergpu.simulation.rehearsal.inline import simulate_with_rehearsals
from hypergpu.simulation.replay import replay
from hypergpu.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Errors of simulated round times against real ones."""

    rounds: int
    real_median_seconds: float
    simulated_median_seconds: float
    error_of_median: float
    """Error of the simulated median, relative to the real one."""
    median_error: float
    """Median over rounds of the error of each, relative to that round's real time."""
    worst_error: float
    """Largest error of a round."""


@dataclass(frozen=True, slots=True)
class Trivial:
    """Scores of predictors that know nothing of the network; a simulator that does not beat them is worth nothing."""

    mean_time_error: float
    """Median error of the mean time of the real rounds, taken for each of them."""
    previous_time_error: float
    """Median error of the time of the real round before, taken for each but the first."""
    everybody_agreement: float
    """Agreement of a selection of all nodes in every round."""

    @property
    def least_time_error(self) -> float:
        """Error of the better predictor of times."""
        return min(self.mean_time_error, self.previous_time_error)


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of a validation."""

    error: float = 0.1
    """Largest median error of replayed round times."""
    own_error: float = 0.2
    """Largest error of the median round time with the simulator's own decisions."""
    agreement: float = 0.75
    """Least mean share of nodes that both select."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Errors of the simulator against a real run."""

    scenario: str
    policy: str
    replayed: RoundTimes
    """Errors with the decisions of the real run."""
    simulated: RoundTimes
    """Errors with the simulator's own decisions."""
    selection_agreement: float
    """Mean over rounds of the share of nodes about whose part in it both decided alike."""
    batch_size_ratio: float
    """Median over nodes and rounds of simulated to real batch size, where both chose the node."""
    trivial: Trivial
    metric: MetricSpec
    real_metric: float | None
    """Metric at the end of the real run; `simulated_metric` likewise."""
    simulated_metric: float | None
    handling_seconds: float
    """Fitted software time of a work unit, beside network and compute."""

    def failures(self, limits: Limits) -> list[str]:
        """Return what is not good enough, one sentence each; nothing if the simulator passes."""
        replayed, own, trivial = self.replayed.median_error, self.simulated.error_of_median, self.trivial
        checks = [
            (replayed <= limits.error, f"replayed rounds are {replayed:.1%} apart; at most {limits.error:.0%} may be"),
            (
                replayed < trivial.least_time_error or replayed == 0,
                f"replayed rounds are {replayed:.1%} apart; a constant or the round before is {_shown(trivial)}",
            ),
            (
                own <= limits.own_error,
                f"its own decisions make a median round {own:.1%} apart; at most {limits.own_error:.0%} may be",
            ),
            (
                self.selection_agreement >= limits.agreement,
                f"selections agree in {self.selection_agreement:.0%}; at least {limits.agreement:.0%} must",
            ),
            (
                self.selection_agreement > trivial.everybody_agreement or self.selection_agreement == 1,
                f"selections agree in {self.selection_agreement:.1%}; taking everybody agrees in "
                f"{trivial.everybody_agreement:.1%}",
            ),
        ]
        return [text for passed, text in checks if not passed]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self) | {"metric": self.metric.model_dump()}


def validate(scenario: Scenario, out: Path) -> Agreement:
    """Run the scenario by real processes and then twice in virtual time, and compare.

    Virtual time takes from the real run what belongs to this machine: when each process started and was ready, what
    computing and evaluating took, and what handling a work unit took. All else it has to find by itself.

    Args:
        scenario: few nodes, few rounds; events by round only.
        out: a directory for the runs: `real`, `replayed` and `simulated`.

    Raises:
        InvalidInput: the scenario needs more than a local cluster offers, or the real run completed no round.
    """
    require_local(scenario)
    asyncio.run(run_for_real(scenario, out / "real"))
    return compare_with_real(scenario, out)


def compare_with_real(scenario: Scenario, out: Path) -> Agreement:
    """Validate against a real run that has been recorded.

    Raises:
        InvalidInput: it finished no round.
    """
    real = read_rounds(out / "real")
    if not real:
        raise InvalidInput(f"the real run completed no round: see {out / 'real' / 'logs'}")
    calibration = calibrate(out / "real", scenario)
    handling_seconds, replayed = replay(scenario, calibration, real, out / "replayed")
    fitted = calibration.of(scenario, handling_seconds)
    outcome = simulate_with_rehearsals(
        fitted, out / "simulated", compute=calibration.compute, starts=calibration.starts
    )
    simulated = read_rounds(out / "simulated")
    chosen = [(row["batch_sizes"], mine["batch_sizes"]) for row, mine in zip(real, simulated, strict=False)]
    nodes = len(scenario.profiles_of_links())
    ratios = [mine[node] / row[node] for row, mine in chosen for node in row.keys() & mine.keys()]
    return Agreement(
        scenario=scenario.name,
        policy=scenario.config.orchestrator.policy,
        replayed=round_times(real, replayed),
        simulated=round_times(real, simulated),
        selection_agreement=sum(1 - len(row.keys() ^ mine.keys()) / nodes for row, mine in chosen) / len(chosen),
        batch_size_ratio=median(ratios) if ratios else 0.0,
        trivial=trivial_scores(real, nodes),
        metric=outcome.metric,
        real_metric=real[-1].get(outcome.metric.name),
        simulated_metric=outcome.final_metric,
        handling_seconds=handling_seconds,
    )


def trivial_scores(real: Sequence[Mapping[str, Any]], nodes: int) -> Trivial:
    """Return how well predictors without any model do on the rounds of a real run.

    Args:
        real: the rounds, at least one.
        nodes: nodes of the scenario.
    """
    times = [row["seconds"] for row in real]
    mean = fmean(times)
    return Trivial(
        mean_time_error=median(abs(mean - seconds) / seconds for seconds in times),
        previous_time_error=median(abs(before - seconds) / seconds for before, seconds in pairwise(times))
        if len(times) > 1
        else math.inf,
        everybody_agreement=fmean(len(row["batch_sizes"]) / nodes for row in real),
    )


def _shown(trivial: Trivial) -> str:
    return f"{trivial.mean_time_error:.1%} and {trivial.previous_time_error:.1%} apart"


def round_times(real: Sequence[Mapping[str, Any]], simulated: Sequence[Mapping[str, Any]]) -> RoundTimes:
    """Compare the rounds of two runs, as far as both went.

    Raises:
        InvalidInput: one of them has none.
    """
    pairs = [(row["seconds"], mine["seconds"]) for row, mine in zip(real, simulated, strict=False)]
    if not pairs:
        raise InvalidInput("one of the two runs completed no round; nothing to compare")
    errors = [abs(mine - seconds) / seconds for seconds, mine in pairs]
    before, after = median(seconds for seconds, _ in pairs), median(mine for _, mine in pairs)
    return RoundTimes(len(pairs), before, after, abs(after - before) / before, median(errors), max(errors))
