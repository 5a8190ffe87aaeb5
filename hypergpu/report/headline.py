"""Headline figures of a run, and of two runs side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.common.text import Number, duration, figure, percent, size
from hypergpu.report.model import Run
from hypergpu.report.node_time import utilisation
from hypergpu.time_to_target import TimeComparison, compare_times


@dataclass(frozen=True, slots=True)
class Measure:
    """One headline figure."""

    key: str
    """Name in JSON, with the unit."""
    label: str
    show: Callable[[Number], str]
    of: Callable[[Run], Number]
    better: int = 0
    """1: more is better; -1: less is better; 0: neither, or it depends on the number of rounds."""


def target_sentence(run: Run) -> str:
    """Return whether and when the run reached its target, as text; empty if it has none."""
    metric, target = run.metric, run.target
    if target is None:
        return ""
    reached, best = run.course.time_to(metric, target), run.course.best(metric)
    if reached is not None:
        return f"Reached the target of {metric.text(target)} after {duration(reached)}."
    nearest = f"; the best was {metric.text(best)}" if best is not None else ""
    return f"Did not reach the target of {metric.text(target)}{nearest}."


def _count(value: Number) -> str:
    return figure(value, 6)


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


_OF_EVERY_RUN = (
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
    Measure("compute_utilisation", "Compute utilisation", percent, utilisation, 1),
    Measure("bytes_sent", "Sent to nodes", size, _recorded("bytes_sent")),
    Measure("bytes_received", "Received from nodes", size, _recorded("bytes_received")),
    Measure("adaptation_share", "Time spent on adapting", percent, _recorded("adaptation_share"), -1),
)


def measures(metric: MetricSpec) -> tuple[Measure, ...]:
    """Return the headline figures for a metric."""
    better = 1 if metric.better == "higher" else -1
    name = metric.name
    own = (
        Measure(name, f"Final {name}", metric.text, lambda run: run.final[1], better),
        Measure(f"best_{name}", f"Best {name}", metric.text, lambda run: run.course.best(run.metric), better),
    )
    loss = Measure("loss", "Final loss", figure, lambda run: run.final[0], -1)
    return (*own, *(() if metric == LOSS else (loss,)), *_OF_EVERY_RUN)


def compare(run: Run, baseline: Run, names: tuple[str, str] = ("this run", "the baseline")) -> TimeComparison:
    """Compare two runs by their time to the target, or else to the best value that both reached."""
    return compare_times(run.metric, run.target, run.course, baseline.course, names=names)


def figures(run: Run) -> dict[str, float | None]:
    """Return the headline figures as plain data."""
    return {measure.key: measure.of(run) for measure in measures(run.metric)}
