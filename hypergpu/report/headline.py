"""The figures that a run is judged by, and two runs side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from hypergpu.report.formats import Number, duration, figure, percent, size
from hypergpu.report.model import Run


@dataclass(frozen=True, slots=True)
class Measure:
    """One headline figure."""

    key: str
    """Its name in JSON, with the unit."""
    label: str
    show: Callable[[Number], str]
    of: Callable[[Run], Number]
    better: int = 0
    """1: more is better; -1: less is; 0: neither, or it depends on how many rounds there were."""


def final(values: Sequence[float | None]) -> float | None:
    """The last value that was measured."""
    return next((value for value in reversed(values) if value is not None), None)


def time_to(run: Run, accuracy: float | None) -> float | None:
    """Seconds from the first round until the accuracy was first reached; None if it never was."""
    if accuracy is None:
        return None
    reached = next((r.ended_at for r in run.rounds if r.accuracy is not None and r.accuracy >= accuracy), None)
    return None if reached is None else reached - run.bands[0][0]


def target_sentence(run: Run) -> str:
    """Whether the run reached the accuracy that it was to reach, and when; empty where none was set."""
    target = run.target_accuracy
    if target is None:
        return ""
    reached, best = time_to(run, target), _best_accuracy(run)
    if reached is not None:
        return f"It was at its target of {percent(target)} after {duration(reached)}."
    nearest = f"; the best was {percent(best)}" if best is not None else ""
    return f"It did not reach its target of {percent(target)}{nearest}."


def _count(value: Number) -> str:
    return figure(value, 6)


def _best_accuracy(run: Run) -> float | None:
    return max((r.accuracy for r in run.rounds if r.accuracy is not None), default=None)


def _samples_per_second(run: Run) -> float | None:
    samples = sum(r.samples or 0.0 for r in run.rounds)
    return samples / run.ended_at if samples and run.ended_at else None


def _contributing(run: Run) -> float | None:
    asked = sum(len(r.nodes) for r in run.rounds)
    return sum(each.success for r in run.rounds for each in r.nodes) / asked if asked else None


def _recorded(key: str) -> Callable[[Run], Number]:
    def of(run: Run) -> Number:
        value = run.summary.get(key)
        return value if isinstance(value, int | float) else None

    return of


MEASURES = (
    Measure("accuracy", "Final accuracy", percent, lambda run: final([r.accuracy for r in run.rounds]), 1),
    Measure("best_accuracy", "Best accuracy", percent, _best_accuracy, 1),
    Measure("loss", "Final loss", figure, lambda run: final([r.loss for r in run.rounds]), -1),
    Measure("rounds", "Rounds", _count, lambda run: len(run.rounds)),
    Measure("elapsed_seconds", "Time", duration, lambda run: run.ended_at or None),
    Measure(
        "round_seconds",
        "Median round",
        duration,
        lambda run: median(r.seconds for r in run.rounds) if run.rounds else None,
        -1,
    ),
    Measure("samples_per_second", "Samples per second", figure, _samples_per_second, 1),
    Measure("contributing_share", "Orders fulfilled", percent, _contributing, 1),
    Measure("bytes_sent", "Sent to nodes", size, _recorded("bytes_sent")),
    Measure("bytes_received", "Received from nodes", size, _recorded("bytes_received")),
    Measure("adaptation_share", "Time spent on adapting", percent, _recorded("adaptation_share"), -1),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against a baseline; `target` is the accuracy whose time is compared."""

    target: float | None
    run_seconds: float | None
    baseline_seconds: float | None

    @property
    def speedup(self) -> float | None:
        """How many times sooner the run was there."""
        if self.run_seconds and self.baseline_seconds:
            return self.baseline_seconds / self.run_seconds
        return None

    def record(self) -> dict[str, float | None]:
        """As a JSON object."""
        return {
            "target_accuracy": self.target,
            "time_to_target_seconds": self.run_seconds,
            "baseline_time_to_target_seconds": self.baseline_seconds,
            "speedup": self.speedup,
        }

    @property
    def sentence(self) -> str:
        """What came of it, in words."""
        if self.target is None:
            return "Accuracy was not measured in both runs, so there is no time to a target to compare."
        goal = f"{percent(self.target)} accuracy"
        mine, theirs = self.run_seconds, self.baseline_seconds
        if mine is not None and theirs is not None:
            if abs(mine - theirs) <= 0.02 * theirs:
                return f"Both runs reached {goal} after about {duration(mine)}."
            word = "sooner" if mine < theirs else "later"
            ratio = max(mine, theirs) / max(min(mine, theirs), 1e-9)
            return (
                f"This run reached {goal} after {duration(mine)}, the baseline after {duration(theirs)}: "
                f"{ratio:.2f} times {word}."
            )
        if mine is not None:
            return f"This run reached {goal} after {duration(mine)}; the baseline never did."
        if theirs is not None:
            return f"The baseline reached {goal} after {duration(theirs)}; this run never did."
        return f"Neither run reached {goal}."


def compare(run: Run, baseline: Run) -> Comparison:
    """Time to the configured target; where there is none, to the best accuracy that both runs reached."""
    target = run.target_accuracy
    if target is None:
        mine, theirs = _best_accuracy(run), _best_accuracy(baseline)
        target = min(mine, theirs) if mine is not None and theirs is not None else None
    return Comparison(target, time_to(run, target), time_to(baseline, target))


def figures(run: Run) -> dict[str, float | None]:
    """The headline as plain data."""
    return {measure.key: measure.of(run) for measure in MEASURES}
