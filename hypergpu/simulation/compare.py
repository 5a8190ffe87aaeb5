"""Paired runs of a scenario: adaptation against the fixed baseline, with confidence intervals."""

import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.metric import ACCURACY, MetricSpec
from hypergpu.common.text import natural_key
from hypergpu.simulation.convergence import ConvergenceBackend
from hypergpu.simulation.node import Compute
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import Estimate, estimate
from hypergpu.simulation.variants import BASELINE, Variant, variants_of
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
        """How often each node was quarantined and let go, by reason, over all seeds."""
        counts: dict[str, Counter[str]] = {}
        for outcome in self.outcomes:
            for node, reasons in outcome.quarantined.items():
                counts.setdefault(node, Counter()).update(reasons)
        ordered = sorted(counts.items(), key=lambda item: natural_key(item[0]))
        return {node: dict(sorted(counter.items())) for node, counter in ordered}

    def record(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "policy": self.variant.policy,
            "strategies": self.variant.strategies,
            "time_to_target_seconds": estimate(self.times).record(),
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
    """A variant against the baseline, pair by pair."""

    result: Result
    speedup: Estimate
    """Time to target of the baseline over that of the candidate."""
    bounds: int
    """Pairs in which one of the two did not reach the target: its time is at least its run's length, or the other's."""
    difference: Estimate
    """Final value of the candidate's metric less that of the baseline's."""

    @property
    def verdict(self) -> str:
        """Verdict on the speedup in a few words."""
        low, high = self.speedup.ci_low, self.speedup.ci_high
        if low is None or high is None:
            return "target not reached"
        if len(self.result.outcomes) == 1:
            return "noise unknown (one seed)"
        if low <= 1.0 <= high:
            return "within the noise"
        return "faster" if low > 1.0 else "slower"

    def record(self) -> dict[str, Any]:
        """Return a JSON object."""
        return self.result.record() | {
            "speedup": self.speedup.record() | {"bounds": self.bounds},
            f"{self.result.metric.name}_difference": self.difference.record(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Comparison:
    """Results of the baseline and of the variants compared with it."""

    scenario: Scenario
    seeds: Sequence[int]
    wanted: float | None
    """The target that was set."""
    target: float | None
    """The value whose time is measured: the target, or where no run reached it, the best that all of them reached."""
    timed_by: MetricSpec
    """Quantity of the value: the metric, or the loss if the metric is undefined in some run."""
    baseline: Result
    candidates: Sequence[Candidate]

    @property
    def metric(self) -> MetricSpec:
        """Metric of the model."""
        return self.baseline.metric

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
        results = [self.baseline, *(candidate.result for candidate in self.candidates)]
        stuck = all(len(result.given_up) == len(result.outcomes) for result in results)
        return self.baseline.given_up[0] if stuck else ""

    def record(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "scenario": self.scenario.name,
            "seeds": list(self.seeds),
            "metric": self.metric.model_dump(),
            "target_accuracy": self.target,
            "wanted_target": self.wanted,
            "baseline": self.baseline.record(),
            "candidates": [candidate.record() for candidate in self.candidates],
        }


def compare(
    scenario: Scenario,
    policies: Sequence[str],
    strategies: Sequence[str] = (),
    *,
    seeds: int = 5,
    jobs: int = 1,
    compute: Compute | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Run a scenario by the fixed baseline and by each policy (with each of the strategies), once for each seed.

    The runs of one seed are paired: links, data and initial parameters draw the same, so that what differs is what was
    decided.

    Args:
        scenario: its seed is the first; its target, or else the task's, is the value whose time is measured.
        policies: policies and fixed settings; `none`, the baseline, is always run and may be named.
        strategies: BATCH/SELECTION, or one of both: a candidate for each policy and each of them.
        seeds: how many.
        jobs: processes to run them in.
        compute: compute times, in place of those of the scenario's cards.
        progress: called with the number of runs that are done, and of all runs.

    Raises:
        UnknownName: a policy or strategy that there is not.
        InvalidInput: nothing to compare with.
    """
    variants = [Variant(BASELINE), *variants_of(policies, strategies)]
    if len(variants) == 1:
        raise InvalidInput(
            f"nothing to compare with the baseline: name a policy other than {BASELINE!r}, as in reactive"
        )
    wanted = target_of(scenario)
    scenario = scenario.changed(target_accuracy=wanted)
    numbers = range(scenario.seed, scenario.seed + seeds)
    runs = [variant.of(scenario, seed) for variant in variants for seed in numbers]
    outcomes = _run_all(runs, jobs, compute, progress)
    results = [Result(variant, outcomes[index * seeds : (index + 1) * seeds]) for index, variant in enumerate(variants)]
    return compared(scenario, list(numbers), wanted, results)


def compared(scenario: Scenario, seeds: Sequence[int], wanted: float | None, results: Sequence[Result]) -> Comparison:
    """Compare results with the first of them, by the time to the target or to the best value that all reached."""
    metric = results[0].metric
    courses = [outcome.as_course() for result in results for outcome in result.outcomes]
    timed_by, target = value_to_compare_at(metric, wanted, courses)
    if target is not None and target != wanted:
        results = [result.timed_to(target, timed_by) for result in results]
    baseline, *others = results
    return Comparison(
        scenario, seeds, wanted, target, timed_by, baseline, [against(baseline, result) for result in others]
    )


def against(baseline: Result, result: Result) -> Candidate:
    """Compare two variants, pair by pair."""
    ratios, bounds = [], 0
    for before, after in zip(baseline.outcomes, result.outcomes, strict=True):
        times = before.time_to_target_seconds, after.time_to_target_seconds
        if times == (None, None):
            continue
        bounds += None in times
        ratios.append(_least_time(before, times[1]) / max(_least_time(after, times[0]), 1e-9))
    differences = [
        after.final_metric - before.final_metric
        for before, after in zip(baseline.outcomes, result.outcomes, strict=True)
        if after.final_metric is not None and before.final_metric is not None
    ]
    return Candidate(result, estimate(ratios), bounds, estimate(differences))


def _least_time(outcome: Outcome, other: float | None) -> float:
    """To the target; of a run that did not reach it, its length, or the time of the other one where that is longer."""
    reached = outcome.time_to_target_seconds
    return max(outcome.trained_seconds, other or 0.0) if reached is None else reached


def target_of(scenario: Scenario) -> float | None:
    """Return the value whose time is measured: the scenario's, or else the one that its task documents."""
    if scenario.target is not None:
        return scenario.target
    from hypergpu.tasks import load_task  # noqa: PLC0415  (torch takes seconds to import)

    return load_task(scenario.config.training.task, scenario.seed).target


def _run_all(
    runs: Sequence[Scenario], jobs: int, compute: Compute | None, progress: Callable[[int, int], None]
) -> list[Outcome]:
    run_one = partial(simulate, compute=compute)
    if jobs <= 1 or len(runs) < 4:
        return _counted(map(run_one, runs), len(runs), progress)
    # Spawned, since torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return _counted(pool.map(run_one, runs), len(runs), progress)


def _counted(outcomes: Iterable[Outcome], total: int, progress: Callable[[int, int], None]) -> list[Outcome]:
    done = []
    progress(0, total)
    for outcome in outcomes:
        done.append(outcome)
        progress(len(done), total)
    return done


@dataclass(frozen=True, slots=True)
class Threshold:
    """A condition on the candidates, such as speedup>=1.5."""

    text: str
    figure: str
    at_least: bool
    bound: float

    def value(self, record: Mapping[str, Any]) -> float | None:
        """Return the figure in the record of a candidate."""
        found: Any = record
        figure, _, bound = self.figure.partition(".ci_")
        for key in (figure, f"ci_{bound}") if bound else (self.figure,):
            found = found[key]
        value: float | None = found["mean"] if isinstance(found, Mapping) else found
        return value

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Whether the candidate passes; False if the figure is unknown."""
        value = self.value(record)
        return value is not None and (value >= self.bound if self.at_least else value <= self.bound)


def figures_of(metric: MetricSpec) -> list[str]:
    """Return the figures that a threshold may name; an estimate means its mean unless a bound is named."""
    estimates = ("speedup", "time_to_target_seconds", f"{metric.name}_difference")
    return [
        *(name for figure in estimates for name in (figure, f"{figure}.ci_low", f"{figure}.ci_high")),
        f"final_{metric.name}",
        f"best_{metric.name}",
        "bytes",
        "rounds",
        "duration_seconds",
        "reached",
    ]


def metric_of_scenario(scenario: Scenario) -> MetricSpec:
    """Return the metric of a scenario's task, before it is run."""
    if scenario.learning == "model":
        return ConvergenceBackend(
            scenario.config.training, scenario.learning_curve(), scenario.metric or ACCURACY
        ).metric
    from hypergpu.tasks import build, load_task, metric_of, spec_of  # noqa: PLC0415  (torch takes seconds to import)

    task = load_task(scenario.config.training.task, scenario.seed)
    return spec_of(metric_of(task, build(task, scenario.config.training.seed).module))


def parse_threshold(text: str, metric: MetricSpec = ACCURACY) -> Threshold:
    """Return a threshold from FIGURE>=NUMBER or FIGURE<=NUMBER.

    Raises:
        InvalidInput: not of that form. UnknownName: an unknown figure.
    """
    for sign in (">=", "<="):
        figure, found, number = text.partition(sign)
        if found:
            figure = figure.strip()
            if figure not in figures_of(metric):
                raise UnknownName("figure", figure, figures_of(metric))
            with suppress(ValueError):
                if math.isfinite(bound := float(number)):
                    return Threshold(text, figure, sign == ">=", bound)
    raise InvalidInput(
        f"the threshold {text!r} is not of the form FIGURE>=NUMBER or FIGURE<=NUMBER, as in speedup>=1.5"
    )
