"""Comparison of two runs by their time to the same value of the metric.

The value is the target if one of the runs reached it, or else the best value that both reached. Runs whose metric is
undefined are compared by their loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.common.text import duration

_ALIKE = 0.02
"""Times that differ by a smaller share count as equal: round times vary more from run to run."""


@dataclass(frozen=True, slots=True)
class Course:
    """Metric and loss of one run over time."""

    points: Sequence[tuple[float, float]]
    """Seconds since the first round began, and the value; evaluations without a value are omitted."""
    seconds: float
    """Time from the beginning of the first round to the end of the last."""
    losses: Sequence[tuple[float, float]] = ()
    """Seconds and loss."""

    def of(self, metric: MetricSpec) -> Sequence[tuple[float, float]]:
        """Return the points of the metric, or of the loss."""
        return self.losses if metric == LOSS else self.points

    def time_to(self, metric: MetricSpec, target: float) -> float | None:
        """Return the seconds until the target was first reached; None if it never was."""
        return next((at for at, value in self.of(metric) if metric.reached(value, target)), None)

    def best(self, metric: MetricSpec) -> float | None:
        """Return the best value."""
        return metric.best(value for _, value in self.of(metric))


@dataclass(frozen=True, slots=True)
class TimeComparison:
    """Comparison of a run with a baseline."""

    metric: MetricSpec
    """Metric of the runs."""
    timed_by: MetricSpec
    """Metric of the compared value: `metric`, or the loss if that is undefined."""
    wanted: float | None
    """Target of the run."""
    target: float | None
    """Value whose time is compared; None if the runs have none in common."""
    run: Course
    baseline: Course
    run_name: str = "this run"
    baseline_name: str = "the baseline"

    @property
    def run_seconds(self) -> float | None:
        """Time of the run to the value."""
        return None if self.target is None else self.run.time_to(self.timed_by, self.target)

    @property
    def baseline_seconds(self) -> float | None:
        """Time of the baseline to the value."""
        return None if self.target is None else self.baseline.time_to(self.timed_by, self.target)

    @property
    def is_bound(self) -> bool:
        """True if only one of the two reached the value."""
        return (self.run_seconds is None) != (self.baseline_seconds is None)

    @property
    def speedup(self) -> float | None:
        """Factor by which the run was faster; a bound if only one run reached the value."""
        mine, theirs = self.run_seconds, self.baseline_seconds
        if mine is None and theirs is None:
            return None
        mine = max(self.run.seconds, theirs or 0.0) if mine is None else mine
        theirs = max(self.baseline.seconds, mine) if theirs is None else theirs
        return theirs / mine if mine > 0 else None

    @property
    def sentence(self) -> str:
        """Result of the comparison, as a sentence."""
        if self.target is None:
            return f"The {self.metric.name} was not measured in both runs, so no times can be compared."
        verdict = self._verdict(self.timed_by.label(self.target))
        if self.timed_by != self.metric:
            return f"The {self.metric.name} is undefined, so their loss is compared. {verdict}"
        if self.wanted is None or self.wanted == self.target:
            return verdict
        bests = " and ".join(self.metric.text(each.best(self.metric)) for each in (self.run, self.baseline))
        return f"Neither run reached the target of {self.metric.text(self.wanted)} (best: {bests}). {verdict}"

    def _verdict(self, goal: str) -> str:
        run, baseline = self.run_name, self.baseline_name
        mine, theirs, ratio = self.run_seconds, self.baseline_seconds, self.speedup
        if mine is not None and theirs is None:
            length = duration(self.baseline.seconds)
            return _sentence(f"{run} reached {goal} after {duration(mine)}; {baseline} never did, in {length}.")
        if mine is None and theirs is not None:
            length = duration(self.run.seconds)
            return _sentence(f"{baseline} reached {goal} after {duration(theirs)}; {run} never did, in {length}.")
        assert mine is not None
        assert theirs is not None
        if ratio is None or abs(mine - theirs) <= _ALIKE * theirs:
            return f"Both runs reached {goal} after about {duration(mine)}."
        word = f"{max(ratio, 1 / ratio):.2f} times {'sooner' if ratio > 1 else 'later'}"
        return _sentence(f"{run} reached {goal} after {duration(mine)}, {baseline} after {duration(theirs)}: {word}.")

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as a JSON object."""
        return {
            "metric": self.timed_by.name,
            "target_accuracy": self.target,
            "wanted_target": self.wanted,
            "run": self.run_name,
            "baseline": self.baseline_name,
            "time_to_target_seconds": self.run_seconds,
            "baseline_time_to_target_seconds": self.baseline_seconds,
            "speedup": self.speedup,
            "speedup_is_bound": self.is_bound,
        }


def value_to_compare_at(
    metric: MetricSpec, wanted: float | None, runs: Sequence[Course]
) -> tuple[MetricSpec, float | None]:
    """Return the target if a run reached it, or else the best value that all reached, of the metric or the loss."""
    if wanted is not None and any(run.time_to(metric, wanted) is not None for run in runs):
        return metric, wanted
    for spec in (metric, LOSS):
        bests = [run.best(spec) for run in runs]
        if None not in bests:
            return spec, spec.worst(bests)
    return metric, None


def compare_times(
    metric: MetricSpec,
    wanted: float | None,
    run: Course,
    baseline: Course,
    *,
    names: tuple[str, str] = ("this run", "the baseline"),
) -> TimeComparison:
    """Compare two runs, which sentences call by `names`."""
    timed_by, target = value_to_compare_at(metric, wanted, [run, baseline])
    return TimeComparison(metric, timed_by, wanted, target, run, baseline, *names)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
