"""Conditions on the figures of a comparison, such as speedup>=1.5."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.metric import ACCURACY, MetricSpec
from hypergpu.simulation.convergence import ConvergenceBackend
from hypergpu.simulation.scenario import Scenario


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
        """Return whether the candidate passes; False if the figure is unknown."""
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
        "ruined",
    ]


def metric_of_scenario(scenario: Scenario) -> MetricSpec:
    """Return the metric of a scenario's task, before it is run."""
    if scenario.learning == "model":
        return ConvergenceBackend(
            scenario.config.training, scenario.learning_curve(), scenario.metric or ACCURACY
        ).metric
    # torch takes seconds to import
    from hypergpu.tasks import build, load_main_task, metric_of, spec_of  # noqa: PLC0415

    training = scenario.config.training
    task = load_main_task(training)
    return spec_of(metric_of(task, build(task, training.seed).module))


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
