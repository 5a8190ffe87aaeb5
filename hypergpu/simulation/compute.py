"""Computing times in virtual time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.step_times import StepTimes
from hypergpu.node.core.compute import ComputeModel
from hypergpu.simulation.node import LocalSteps
from hypergpu.simulation.round_rows import require_valid
from hypergpu.simulation.scenario import ComputeTimes, Scenario

# Forward and backward on one core, `Trainer.time_step` at batches of 1 and 256. A node measures its own machine; here
# the times are fixed, so that the same scenario gives the same bytes on every machine.
TASK_TIMES: Mapping[str, ComputeTimes] = {
    "digit_sums": ComputeTimes(
        seconds_per_step=0.0005, seconds_per_sample=0.0000025, adamw_seconds=0.00005, muon_seconds=0.001
    ),
    "digits": ComputeTimes(
        seconds_per_step=0.0006, seconds_per_sample=0.0000025, adamw_seconds=0.00005, muon_seconds=0.0008
    ),
    "mnist5k": ComputeTimes(
        seconds_per_step=0.003, seconds_per_sample=0.00047, adamw_seconds=0.001, muon_seconds=0.003
    ),
    "chars": ComputeTimes(seconds_per_step=0.004, seconds_per_sample=0.0018, adamw_seconds=0.004, muon_seconds=0.005),
}


class SimulatedCards:
    """The cards of a scenario, as the nodes' own compute model has them.

    A node draws the spread of each step; here one draw stands for all steps of a work unit. The sum of n log-normal
    times is taken as log-normal with its mean and variance (Fenton, 1960).
    """

    def __init__(self, scenario: Scenario) -> None:
        self._times = times = times_of(scenario)
        self._speeds = speeds = {name: group.speed for group in scenario.nodes for name in group.names()}
        self._variance = math.expm1(times.spread**2)
        self._spreads: dict[int, tuple[float, float]] = {}
        self._models = {
            name: ComputeModel(
                specs,
                seconds_per_step=times.seconds_per_step / speeds[name],
                seconds_per_sample=times.seconds_per_sample / speeds[name],
                spread=0.0,
            )
            for name, specs in scenario.cards().items()
        }
        self._draws = {name: KeyedRandom(scenario.seed, "compute", name) for name in self._models}

    def seconds(self, node_id: str, steps: LocalSteps, now: float) -> float:
        """Return the seconds that a node computes for a work unit."""
        # A single step sends its gradient, which no optimizer of the node applies.
        optimizer = self._times.optimizer_seconds(steps.optimizer) / self._speeds[node_id] if steps.number > 1 else 0.0
        mean = steps.number * self._models[node_id].step_seconds(steps.first, steps.batch_size, now, optimizer)
        sigma, shift = self._spreads.get(steps.number) or self._spread(steps.number)
        return mean * math.exp(sigma * self._draws[node_id].normal(steps.first) - shift)

    def step_times(self, node_id: str) -> StepTimes:
        """Return the time of a node's steps, as a node with a simulated card announces it."""
        return self._models[node_id].step_times

    def _spread(self, steps: int) -> tuple[float, float]:
        """Return the standard deviation of the logarithm of a sum of so many steps, and what keeps its mean 1."""
        variance = math.log1p(self._variance / steps)
        spread = self._spreads[steps] = (math.sqrt(variance), variance / 2)
        return spread


def base_seconds(times: ComputeTimes, batch_size: int) -> float:
    """Duration of one step on the fastest preset."""
    return times.seconds_per_step + times.seconds_per_sample * batch_size


def optimizer_share(times: ComputeTimes, batch_size: int, optimizer: str) -> float:
    """Return the share of a local step that its optimizer takes."""
    seconds = times.optimizer_seconds(optimizer)
    return seconds / (seconds + base_seconds(times, batch_size)) if seconds else 0.0


def times_of(scenario: Scenario) -> ComputeTimes:
    """Return the scenario's compute times, or else its task's."""
    return scenario.compute or TASK_TIMES.get(scenario.config.training.task, ComputeTimes())


def read_rounds(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's rounds.jsonl.

    Raises:
        InvalidInput: there is no run.
        ConfigError: the file cannot be read, or a row is not valid.
    """
    file = run_dir / "rounds.jsonl"
    if not file.exists():
        raise InvalidInput(f"{run_dir} holds no run: there is no rounds.jsonl")
    rows = list(strict_json.read_lines(file))
    require_valid(rows, str(file))
    return rows
