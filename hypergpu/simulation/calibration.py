"""Calibration of virtual time by a real run: the speed of its machine, nothing of its network or decisions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import finite
from hypergpu.common.step_times import StepTimes, step_times
from hypergpu.node.core.gpu import FASTEST_TFLOPS
from hypergpu.simulation.compute import base_seconds, read_rounds, times_of
from hypergpu.simulation.node import LocalSteps, Start
from hypergpu.simulation.round_rows import require_valid_events
from hypergpu.simulation.scenario import ComputeTimes, Scenario

_WIDE_ENOUGH = 1.25
"""Least ratio of two batch sizes whose times show the cost of a sample; closer ones show noise."""


class StepTime(NamedTuple):
    """Duration of a local step, in seconds."""

    node: str
    batch_size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredCompute:
    """Compute times that the nodes of a real run needed."""

    times: Mapping[str, ComputeTimes]

    def seconds(self, node_id: str, steps: LocalSteps, now: float) -> float:
        """Return the seconds that a node computes for a work unit."""
        del now
        return steps.number * base_seconds(self.times[node_id], steps.batch_size)  # with the optimizer of the real run

    def step_times(self, node_id: str) -> StepTimes:
        """Return the time of a node's steps; what it announced in the real run is not on record, but close to it."""
        times = self.times[node_id]
        return step_times(times.seconds_per_step, times.seconds_per_sample)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Speed of the machine of a real run."""

    compute: MeasuredCompute
    evaluation_seconds: float
    """Median time between two rounds."""
    starts: Mapping[str, Start]
    """Start times of its nodes; empty if its events do not name each."""

    def of(self, scenario: Scenario, handling_seconds: float) -> Scenario:
        """Return the scenario on that machine, where handling a work unit takes `handling_seconds`."""
        return scenario.changed(evaluation_seconds=self.evaluation_seconds, handling_seconds=handling_seconds)


def calibrate(run_dir: Path, scenario: Scenario) -> Calibration:
    """Return the calibration that a real run of the scenario in `run_dir` gives.

    Raises:
        InvalidInput: no round of it was finished.
    """
    rows = read_rounds(run_dir)
    gaps = [after["ended_seconds"] - after["seconds"] - before["ended_seconds"] for before, after in pairwise(rows)]
    evaluation = max(0.0, median(gaps)) if gaps else scenario.evaluation_seconds
    links = scenario.profiles_of_links()
    scales = {name: FASTEST_TFLOPS / card.tflops for name, card in scenario.cards().items()}
    file = run_dir / "events.jsonl"
    events = list(strict_json.read_lines(file)) if file.exists() else []
    require_valid_events(events, str(file))
    compute = MeasuredCompute(compute_times(rows, times_of(scenario), scales, _late_work(rows, events)))
    half_trips = {name: link.up.latency.at(0.5) for name, link in links.items()}
    return Calibration(compute, evaluation, _starts(events, half_trips))


def _late_work(rows: Sequence[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> Iterator[StepTime]:
    """Yield the step times of updates that missed the end of their round: all that is known of some slow nodes."""
    by_round = {row["round"]: row for row in rows}
    for event in events:
        if event["kind"] != "decision" or event.get("reason") != "after_deadline":
            continue
        node, figures = event.get("subject", ""), event.get("figures", {})
        row, seconds = by_round.get(figures.get("of_round", 0)), finite(figures.get("compute_seconds")) or 0.0
        if row is not None and node in row["batch_sizes"] and seconds > 0:
            yield StepTime(node, row["batch_sizes"][node], seconds / _steps(row, node))


def _steps(row: Mapping[str, Any], node: str) -> int:
    """Return the local steps of a node in a round."""
    steps: int = row.get("node_steps", {}).get(node, row["local_steps"])
    return steps


def compute_times(
    rows: Sequence[Mapping[str, Any]],
    usual: ComputeTimes,
    scales: Mapping[str, float],
    late: Iterable[StepTime] = (),
) -> dict[str, ComputeTimes]:
    """Fit, for each node, a line through its step times on different batch sizes (Theil–Sen, by medians).

    Args:
        rows: rounds of a run.
        usual: the task's times, whose shape is kept for a node that had batches of one size only.
        scales: how many times longer the card of each node takes than the fastest. A node that never contributed is
            taken to be that much slower than the slowest card that did.
        late: step times of nodes that contributed to no round.

    Raises:
        InvalidInput: no round was finished.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for node in row["contributors"]:
            seconds = row["compute_seconds"][node] / _steps(row, node)
            found.setdefault(node, []).append((row["batch_sizes"][node], seconds))
    contributed = set(found)
    for node, batch_size, seconds in late:
        if node not in contributed:
            found.setdefault(node, []).append((batch_size, seconds))
    if not contributed:
        raise InvalidInput("no round of the run was finished: there is nothing to calibrate by")
    lines = {node: _line(points, usual) for node, points in found.items()}
    slowest = max(lines, key=lambda node: scales[node])
    return {node: lines.get(node) or _scaled(lines[slowest], scale / scales[slowest]) for node, scale in scales.items()}


def _line(points: Sequence[tuple[int, float]], usual: ComputeTimes) -> ComputeTimes:
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(sorted(points), 2) if b[0] > _WIDE_ENOUGH * a[0]]
    if slopes:
        per_sample = max(0.0, median(slopes))
        per_step = median(seconds - per_sample * batch for batch, seconds in points)
        if per_step > 0:
            return ComputeTimes(seconds_per_step=per_step, seconds_per_sample=per_sample)
    return _scaled(usual, median(seconds / base_seconds(usual, batch) for batch, seconds in points))


def _scaled(times: ComputeTimes, scale: float) -> ComputeTimes:
    return ComputeTimes(
        seconds_per_step=scale * times.seconds_per_step, seconds_per_sample=scale * times.seconds_per_sample
    )


def _starts(events: Iterable[Mapping[str, Any]], half_trips: Mapping[str, float]) -> dict[str, Start]:
    """Return the time at which each node dialled, and the seconds that it prepared, without the time of its calls."""
    at: dict[tuple[str, str], float] = {}
    for row in events:
        if row["kind"] in ("node_joined", "node_ready"):
            at.setdefault((row["kind"], row.get("node", "")), row["seconds"])
    found = {}
    for node, half_trip in half_trips.items():
        joined, ready = at.get(("node_joined", node)), at.get(("node_ready", node))
        if joined is None or ready is None:
            return {}
        # Its answer, the second registration there and back, and the request: four half trips.
        found[node] = Start(max(0.0, joined - half_trip), max(0.0, ready - joined - 4 * half_trip))
    return found
