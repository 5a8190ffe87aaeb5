"""Computing times in virtual time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.core.compute import ComputeModel
from hypergpu.simulation.scenario import ComputeTimes, Scenario

# Forward and backward on one core, `Trainer.time_step` at batches of 1 and 256. A node measures its own machine; here
# the times are fixed, so that the same scenario gives the same bytes on every machine.
TASK_TIMES: Mapping[str, ComputeTimes] = {
    "digit_sums": ComputeTimes(seconds_per_step=0.0005, seconds_per_sample=0.0000025),
    "digits": ComputeTimes(seconds_per_step=0.0006, seconds_per_sample=0.0000025),
    "mnist5k": ComputeTimes(seconds_per_step=0.003, seconds_per_sample=0.00047),
    "chars": ComputeTimes(seconds_per_step=0.004, seconds_per_sample=0.0018),
}


class SimulatedCards:
    """The cards of a scenario, as the nodes' own compute model has them.

    A node draws the spread of each step; here one draw stands for all steps of a work unit. The sum of n log-normal
    times is taken as log-normal with its mean and variance (Fenton, 1960).
    """

    def __init__(self, scenario: Scenario) -> None:
        times = times_of(scenario)
        speeds = {name: group.speed for group in scenario.nodes for name in group.names()}
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

    def seconds(self, node_id: str, step: int, batch_size: int, steps: int, now: float) -> float:
        """Return the seconds that a node computes for a work unit."""
        mean = steps * self._models[node_id].step_seconds(step, batch_size, now)
        sigma, shift = self._spreads.get(steps) or self._spread(steps)
        return mean * math.exp(sigma * self._draws[node_id].normal(step) - shift)

    def _spread(self, steps: int) -> tuple[float, float]:
        """Return the standard deviation of the logarithm of a sum of so many steps, and what keeps its mean 1."""
        variance = math.log1p(self._variance / steps)
        spread = self._spreads[steps] = (math.sqrt(variance), variance / 2)
        return spread


def base_seconds(times: ComputeTimes, batch_size: int) -> float:
    """Duration of one step on the fastest preset."""
    return times.seconds_per_step + times.seconds_per_sample * batch_size


def times_of(scenario: Scenario) -> ComputeTimes:
    """Return the scenario's compute times, or else its task's."""
    return scenario.compute or TASK_TIMES.get(scenario.config.training.task, ComputeTimes())


def read_rounds(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's rounds.jsonl.

    Raises:
        InvalidInput: there is no run, or the file cannot be read.
    """
    file = run_dir / "rounds.jsonl"
    if not file.exists():
        raise InvalidInput(f"{run_dir} holds no run: there is no rounds.jsonl")
    return list(strict_json.read_lines(file))
