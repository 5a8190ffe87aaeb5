"""How long computing takes in virtual time."""

from collections.abc import Mapping

from hypergpu.simulation.scenario import ComputeTimes, Scenario
from node.core.compute import ComputeModel

# Forward and backward on one core of a server of 2023, `Trainer.time_step` at two batches. A node measures its own
# machine; here they are fixed, so that the same scenario gives the same bytes on every machine.
TASK_TIMES: Mapping[str, ComputeTimes] = {
    "digits": ComputeTimes(seconds_per_step=0.00025, seconds_per_sample=0.0000025),
    "mnist5k": ComputeTimes(seconds_per_step=0.0006, seconds_per_sample=0.00006),
    "chars": ComputeTimes(seconds_per_step=0.003, seconds_per_sample=0.0006),
}


class SimulatedCards:
    """The compute model of each node's card, as the node itself has it."""

    def __init__(self, scenario: Scenario) -> None:
        times = scenario.compute or TASK_TIMES.get(scenario.config.training.task, ComputeTimes())
        speeds = {name: group.speed for group in scenario.nodes for name in group.names()}
        self._models = {
            name: ComputeModel(
                specs,
                seconds_per_step=times.seconds_per_step / speeds[name],
                seconds_per_sample=times.seconds_per_sample / speeds[name],
                spread=times.spread,
                seed=scenario.seed,
                node_id=name,
            )
            for name, specs in scenario.cards().items()
        }

    def seconds(self, node_id: str, step: int, batch_size: int, steps: int, now: float) -> float:
        """As `Compute.seconds`."""
        model, at = self._models[node_id], now
        for index in range(step, step + steps):
            at += model.step_seconds(index, batch_size, at)
        return at - now


class MeasuredCompute:
    """Compute times of a real run, by node: fixed seconds per step and seconds per sample."""

    def __init__(self, per_step: Mapping[str, float], per_sample: Mapping[str, float]) -> None:
        self._per_step, self._per_sample = per_step, per_sample

    def seconds(self, node_id: str, step: int, batch_size: int, steps: int, now: float) -> float:
        """As `Compute.seconds`."""
        del step, now
        return steps * (self._per_step[node_id] + self._per_sample[node_id] * batch_size)
