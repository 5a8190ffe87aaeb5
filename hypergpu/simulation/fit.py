"""Fits the model of convergence to real runs of a task: `hypergpu fit digits`.

The runs have perfect links and the task's default learning rate; they differ in nodes and batch, so that the
noise scale shows. Residuals are of the logarithm of the loss and of the accuracy, at every round.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import least_squares

from common.config import TrainingConfig
from coordinator.core.events import Assign, Shard
from hypergpu.simulation.convergence import Convergence
from hypergpu.simulation.gradients import RealLearning, on_one_thread
from tasks import load_task

SETUPS = ((1, 16), (1, 64), (4, 32), (5, 64), (8, 128), (20, 64))
"""Nodes and batch of each run."""


def run(task: str, nodes: int, batch: int, rounds: int, seed: int) -> tuple[list[float], list[float], list[float], int]:
    """Losses, accuracies and training losses of a run, from before its first round on; and the bytes of the model."""
    config = TrainingConfig(task=task, seed=seed)
    learning = RealLearning(load_task(task), config)
    points, trained = [learning.evaluate()], []
    for number in range(rounds):
        cursor = number * config.local_steps * batch
        for index in range(nodes):
            shard = Shard(index, nodes, cursor)
            order = Assign(
                number + 1, f"node_{index}", 1, batch, config.local_steps, config.learning_rate, shard, float("inf")
            )
            result = learning.train(order)
            learning.add(result.samples)
            trained.append(result.loss_before)
        learning.step()
        points.append(learning.evaluate())
    losses, accuracies = zip(*points, strict=True)
    return list(losses), list(accuracies), trained, learning.model_bytes


def fit(
    task: str, rounds: int = 60, seed: int = 0, progress: Callable[[str], None] = lambda _: None
) -> tuple[Convergence, float, float]:
    """The constants, and the root mean square errors of log loss and of accuracy.

    Raises:
        UnknownName, InvalidInput: there is no such task, or it cannot be loaded.
    """
    on_one_thread()
    config = TrainingConfig(task=task)
    runs = []
    for number, (nodes, batch) in enumerate(SETUPS, 1):
        progress(f"run {number} of {len(SETUPS)}: {nodes} {'node' if nodes == 1 else 'nodes'}, batches of {batch}")
        runs.append(run(task, nodes, batch, rounds, seed))
    progress("fitting")
    start_loss = float(np.mean([losses[0] for losses, *_ in runs]))
    start_accuracy = float(np.mean([accuracies[0] for _, accuracies, *_ in runs]))
    ceiling = max(max(accuracies) for _, accuracies, *_ in runs)
    base = Convergence(
        model_bytes=runs[0][3],
        learning_rate=config.learning_rate,
        noise_scale=64.0,
        loss_start=start_loss,
        loss_floor=0.05,
        loss_scale=10.0,
        loss_power=1.0,
        accuracy_start=start_accuracy,
        accuracy_ceiling=ceiling,
        accuracy_scale=5.0,
        accuracy_power=1.5,
    )

    def with_values(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Convergence:
        noise, floor, scale, power, missing, accuracy_scale, accuracy_power = np.exp(values)
        return base.model_copy(
            update={
                "noise_scale": float(noise),
                "loss_floor": float(floor),
                "loss_scale": float(scale),
                "loss_power": float(power),
                "accuracy_ceiling": 1.0 - float(missing),
                "accuracy_scale": float(accuracy_scale),
                "accuracy_power": float(accuracy_power),
            }
        )

    def residuals(
        values: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    ) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        model, found = with_values(values), []
        for (nodes, batch), (losses, accuracies, *_) in zip(SETUPS, runs, strict=True):
            for number in range(len(losses)):
                path = model.progress(number * config.local_steps, nodes * batch, config.learning_rate)
                found.append(np.log(model.loss(path) / losses[number]))
                found.append(5.0 * (model.accuracy(path) - accuracies[number]))
        return np.array(found)

    first = np.log([64.0, 0.05, 10.0, 1.0, max(1e-3, 1 - ceiling), 5.0, 1.5])
    solution = least_squares(residuals, first, loss="soft_l1", f_scale=0.1)
    errors = residuals(solution.x)
    model = with_values(solution.x)
    _, _, trained, _ = runs[SETUPS.index((5, 64))]
    late = np.array(trained[-100:])
    spread = float(late.std() / late.mean() * 64**0.5)
    return (
        model.model_copy(update={"loss_spread": spread}),
        float(np.std(errors[::2])),
        float(np.std(errors[1::2]) / 5.0),
    )
