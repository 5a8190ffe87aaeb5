"""Results of the variants of a scenario, and their comparison."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypergpu.common.metric import MetricSpec
from hypergpu.common.text import natural_key
from hypergpu.simulation.oracle import Tuned
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import Estimate, geometric_mean_of
from hypergpu.simulation.variants import Variant
from hypergpu.simulation.verdict import Match, match
from hypergpu.time_to_target import value_to_compare_at


@dataclass(frozen=True)
class Result:
    """All runs of one variant, in the order of the seeds."""

    variant: Variant
    outcomes: Sequence[Outcome]

    @property
    def times(self) -> list[float]:
        """Seconds to the target, of the runs that reached it."""
        return [o.time_to_target_seconds for o in self.outcomes if o.time_to_target_seconds is not None]

    def mean(self, figure: str) -> float | None:
        """Return the mean of a figure of the outcomes, of those that have it."""
        values = [value for o in self.outcomes if (value := getattr(o, figure)) is not None]
        return float(sum(values) / len(values)) if values else None

    @property
    def metric(self) -> MetricSpec:
        """Metric of the model."""
        return self.outcomes[0].metric

    @property
    def best(self) -> float | None:
        """The best value of the metric in any of the runs."""
        return self.metric.best(outcome.best_metric for outcome in self.outcomes)

    def timed_to(self, target: float, by: MetricSpec) -> "Result":
        """Return the same runs, their time taken to another value of the metric, or of the loss."""
        times = [outcome.as_course().time_to(by, target) for outcome in self.outcomes]
        pairs = zip(self.outcomes, times, strict=True)
        return replace(self, outcomes=[replace(o, target=target, time_to_target_seconds=time) for o, time in pairs])

    @property
    def given_up(self) -> list[str]:
        """Reasons of runs that made no progress, one for each."""
        return [outcome.given_up for outcome in self.outcomes if outcome.given_up]

    def quarantined(self) -> dict[str, dict[str, int]]:
        """Return how often each node was quarantined and released, by node and reason, over all seeds."""
        counts: dict[str, Counter[str]] = {}
        for outcome in self.outcomes:
            for node, reasons in outcome.quarantined.items():
                counts.setdefault(node, Counter()).update(reasons)
        ordered = sorted(counts.items(), key=lambda item: natural_key(item[0]))
        return {node: dict(sorted(counter.items())) for node, counter in ordered}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "policy": self.variant.policy,
            "setting": self.variant.name,
            "strategies": self.variant.strategies,
            "time_to_target_seconds": geometric_mean_of(self.times).to_dict(),
            "reached": len(self.times),
            f"best_{self.metric.name}": self.best,
            f"final_{self.metric.name}": self.mean("final_metric"),
            "bytes": self.mean("bytes"),
            "rounds": self.mean("rounds"),
            "duration_seconds": self.mean("seconds"),
            "quarantined": self.quarantined(),
            "given_up": self.given_up,
        }


@dataclass(frozen=True)
class Candidate:
    """A variant against the first baseline, and against the others."""

    result: Result
    match: Match
    against: Sequence[tuple[Result, Match]] = ()
    """The further baselines, and the figures against each."""

    @property
    def gap(self) -> Estimate:
        """Time to target over that of the last baseline."""
        found = self.against[-1][1] if self.against else self.match
        return found.speedup.inverse

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        others = {other.variant.label: found.to_dict() for other, found in self.against}
        return self.result.to_dict() | self.match.to_dict() | {"against": others}


@dataclass(frozen=True)
class Comparison:
    """Results of the baselines and of the variants compared with them."""

    scenario: Scenario
    seeds: Sequence[int]
    wanted: float | None
    """The target that was set."""
    target: float | None
    """The value whose time is measured: the target, or where no run reached it, the best that all of them reached."""
    timed_by: MetricSpec
    """Quantity of the value: the metric, or the loss if the metric is undefined in some run."""
    baseline: Result
    baselines: Sequence[Candidate]
    """The further baselines, each against the first."""
    candidates: Sequence[Candidate]
    oracle: Tuned | None = None
    """The best fixed setting, which is the last baseline; None if it was not searched for."""

    @property
    def metric(self) -> MetricSpec:
        """Metric of the model."""
        return self.baseline.metric

    @property
    def results(self) -> list[Result]:
        """All results: the baselines first."""
        return [self.baseline, *(each.result for each in (*self.baselines, *self.candidates))]

    @property
    def remark(self) -> str:
        """Note on the value whose time is measured; empty if it is the configured target."""
        if self.target == self.wanted:
            return ""
        missed = "" if self.wanted is None else f"no run reached the target of {self.metric.text(self.wanted)}; "
        if self.target is None:
            return f"{missed}the {self.metric.name} was not measured in all runs"
        if self.timed_by != self.metric:
            missed = f"the {self.metric.name} is not defined in all runs; "
        return f"{missed}times are to {self.timed_by.label(self.target)}, the best value that all runs reached"

    @property
    def given_up(self) -> str:
        """Return the reason of the first run, if no run made progress."""
        stuck = all(len(result.given_up) == len(result.outcomes) for result in self.results)
        return self.baseline.given_up[0] if stuck else ""

    def _gaps(self) -> dict[str, Any]:
        return {each.result.variant.label: each.gap.to_dict() for each in self.candidates}

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat row for each result, with its figures against the first baseline; the first row is that."""
        rows = [_result_row(self.baseline, self.scenario.name, is_baseline=True)]
        for is_baseline, group in ((True, self.baselines), (False, self.candidates)):
            rows += [
                _result_row(each.result, self.scenario.name, is_baseline=is_baseline) | _match_row(each.match)
                for each in group
            ]
        return rows

    def run_rows(self) -> list[dict[str, Any]]:
        """Return a flat row for each run: its policy, seed, times, final values and bytes."""
        return [
            _run_row(result.variant.label, outcome, self.scenario.name)
            for result in self.results
            for outcome in result.outcomes
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "scenario": self.scenario.name,
            "seeds": list(self.seeds),
            "metric": self.metric.model_dump(),
            "target_accuracy": self.target,
            "wanted_target": self.wanted,
            "baseline": self.baseline.to_dict(),
            "baselines": [each.to_dict() for each in self.baselines],
            "oracle": self.oracle.to_dict() | {"gap": self._gaps()} if self.oracle else None,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


def _result_row(result: Result, scenario: str, *, is_baseline: bool) -> dict[str, Any]:
    metric = result.metric.name
    return {
        "scenario": scenario,
        "policy": result.variant.label,
        "is_baseline": is_baseline,
        "runs": len(result.outcomes),
        "reached": len(result.times),
        **_estimate_cells("time_to_target_seconds", geometric_mean_of(result.times)),
        f"final_{metric}": result.mean("final_metric"),
        f"best_{metric}": result.best,
        "final_loss": result.mean("final_loss"),
        "rounds": result.mean("rounds"),
        "seconds": result.mean("seconds"),
        "bytes": result.mean("bytes"),
    }


def _match_row(found: Match) -> dict[str, Any]:
    return {
        **_estimate_cells("speedup", found.speedup),
        **_estimate_cells(f"{found.metric.name}_difference", found.difference),
        "ruined": found.ruined,
        "standing": str(found.verdict.standing),
        "verdict": found.verdict.text,
    }


def _estimate_cells(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.mean, f"{name}_ci_low": estimate.ci_low, f"{name}_ci_high": estimate.ci_high}


def _run_row(label: str, outcome: Outcome, scenario: str) -> dict[str, Any]:
    metric = outcome.metric.name
    return {
        "scenario": scenario,
        "policy": label,
        "seed": outcome.seed,
        "time_to_target_seconds": outcome.time_to_target_seconds,
        f"final_{metric}": outcome.final_metric,
        f"best_{metric}": outcome.best_metric,
        "final_loss": outcome.final_loss,
        "rounds": outcome.rounds,
        "seconds": outcome.seconds,
        "bytes": outcome.bytes,
        "messages": outcome.messages,
        "state": outcome.state,
        "given_up": outcome.given_up,
    }


def compared(
    scenario: Scenario,
    seeds: Sequence[int],
    wanted: float | None,
    baselines: Sequence[Result],
    candidates: Sequence[Result],
    *,
    oracle: Tuned | None = None,
) -> Comparison:
    """Compare candidates with baselines, by the time to the target or to the best value that all reached.

    Args:
        scenario: what was run.
        seeds: seed of each run of a result.
        wanted: the target that was set.
        baselines: at least one.
        candidates: what is compared with each of them.
        oracle: where the last baseline comes from, if it was searched for.
    """
    metric = baselines[0].metric
    courses = [outcome.as_course() for result in (*baselines, *candidates) for outcome in result.outcomes]
    timed_by, target = value_to_compare_at(metric, wanted, courses)
    if target is not None and target != wanted:
        baselines = [result.timed_to(target, timed_by) for result in baselines]
        candidates = [result.timed_to(target, timed_by) for result in candidates]
    first, *others = baselines
    return Comparison(
        scenario,
        seeds,
        wanted,
        target,
        timed_by,
        first,
        [against([first], result) for result in others],
        [against(baselines, result) for result in candidates],
        oracle,
    )


def against(references: Sequence[Result], result: Result) -> Candidate:
    """Compare a variant with each reference, pair by pair."""
    first, *others = ((reference, match(reference.outcomes, result.outcomes)) for reference in references)
    return Candidate(result, first[1], others)
