from itertools import pairwise

import pytest

from hypergpu.common.config import TrainingConfig
from hypergpu.coordinator.core.rounds.events import Shard, WorkAssigned
from hypergpu.simulation.convergence import FITTED, ConvergenceBackend
from hypergpu.tasks import TASK_NAMES


def order(number: int, *, batch: int = 64, steps: int = 10, rate: float = 0.1, shard: int = 0) -> WorkAssigned:
    return WorkAssigned(number, f"n{shard}", 1, batch, steps, rate, "sgd", Shard(shard, 4, 0), 1e9)


def after(rounds: int, *, nodes: int = 1, **work: float) -> tuple[float, float]:
    learning = ConvergenceBackend(TrainingConfig(), FITTED["digits"])
    for number in range(1, rounds + 1):
        for shard in range(nodes):
            learning.add(learning.train(order(number, shard=shard, **work)).samples)  # type: ignore[arg-type]
        learning.step()
    loss, metric = learning.evaluate()
    assert metric is not None
    return loss, metric


def test_it_begins_and_ends_where_the_fit_does() -> None:
    model = FITTED["digits"]
    assert after(0) == pytest.approx((model.loss_start, model.metric_start))
    loss, accuracy = after(3000, nodes=4)
    assert loss == pytest.approx(model.loss_floor, abs=0.02)
    assert accuracy == pytest.approx(model.metric_limit, abs=0.005)


def test_more_samples_help_with_diminishing_returns() -> None:
    losses = [after(5, batch=batch)[0] for batch in (8, 32, 128, 512)]
    gains = [a - b for a, b in pairwise(losses)]
    assert gains[0] > gains[1] > gains[2] > 0


def test_local_steps_beyond_the_drift_are_worth_less() -> None:
    model = FITTED["digits"].model_copy(update={"drift_steps": 40.0})
    assert (model.worth(40), FITTED["digits"].worth(40)) == (20.0, 40)

    def after_one_round(steps: int) -> float:
        learning = ConvergenceBackend(TrainingConfig(), model)
        learning.add(learning.train(order(1, steps=steps)).samples)
        learning.step()
        return learning.evaluate()[0]

    assert after_one_round(40) == pytest.approx(after(1, steps=20)[0])
    assert after_one_round(10_000) > after(1, steps=40)[0]  # no more than 40 steps can be worth


def test_nodes_are_worth_what_one_node_with_their_batches_is() -> None:
    assert after(5, nodes=4, batch=16) == pytest.approx(after(5, nodes=1, batch=64))


def test_what_is_discarded_teaches_nothing() -> None:
    learning = ConvergenceBackend(TrainingConfig(), FITTED["digits"])
    learning.add(learning.train(order(1)).samples)
    learning.discard()
    learning.step()
    assert learning.evaluate() == after(0)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_shipped_task_has_a_fit_that_learns_and_never_beyond_what_is_possible(task: str) -> None:
    model = FITTED[task]
    losses = [model.loss(path) for path in range(0, 2000, 50)]
    accuracies = [model.metric(path) or 0.0 for path in range(0, 2000, 50)]
    assert losses == sorted(losses, reverse=True)
    assert accuracies == sorted(accuracies)
    assert losses[-1] > 0
    assert accuracies[-1] < 1
