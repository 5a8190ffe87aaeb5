import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InvalidInput, NonFiniteUpdate, ProtocolError
from common.tensors import Flat
from node.trainer import Trainer
from tasks import Metric, Task, build, load_task
from tasks.partition import ShardOrder, partition
from tasks.samples import fetch


def _order(samples: int, index: int = 0, shards: int = 1) -> ShardOrder:
    return ShardOrder(partition("iid", samples, shards, 5)[index], 5, index)


@pytest.mark.parametrize("nodes", [2, 5])
def test_the_weighted_gradients_of_n_nodes_are_those_of_one_process(nodes: int) -> None:
    """To float32 rounding, with batches of different sizes."""
    task = load_task("digits")
    parameters = build(task, 3).flat()
    updates, samples = [], []
    for index in range(nodes):
        trainer = Trainer(task, 3)
        taken = _order(1497, index, nodes).take(0, 16 + 8 * index)
        samples.append(taken)
        batch = trainer.samples(taken)
        update = trainer.work(parameters, lambda i, b=batch: b, local_steps=1, learning_rate=1.0)  # type: ignore[misc]
        assert update.samples == len(taken)
        updates.append((update.samples, update.flat.copy()))
    mean = sum(n * flat.astype(np.float64) for n, flat in updates) / sum(n for n, _ in updates)
    model = build(task, 3)
    inputs, targets = fetch(task.train, np.concatenate(samples), torch.device("cpu"))
    task.loss(model.module(inputs), targets).backward()
    expected = model.gradients.numpy()
    scale = np.abs(expected).max()
    assert np.abs(mean - expected).max() <= 1e-6 * scale + 1e-8


def test_local_steps_send_the_change_of_the_parameters() -> None:
    task = load_task("digits")
    trainer, model = Trainer(task, 0), build(task, 0)
    parameters, order = model.flat(), _order(1497)
    update = trainer.work(
        parameters, lambda i: trainer.samples(order.take(32 * i, 32)), local_steps=4, learning_rate=0.1
    )
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad(set_to_none=False)
        inputs, targets = trainer.samples(order.take(32 * step, 32))
        task.loss(model.module(inputs), targets).backward()
        optimizer.step()
    assert np.allclose(update.flat, model.flat() - parameters, atol=1e-6)
    assert (update.samples, len(update.steps)) == (128, 4)


INPUTS, VALUES = torch.randn(16, 3), torch.randn(16, 1)


def test_a_metric_that_raises_on_a_batch_costs_no_work_and_is_told_once() -> None:
    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        raise ValueError("only one class")

    told: list[str] = []
    task = Task(
        model=lambda: nn.Linear(3, 1),
        train=(INPUTS, VALUES),
        test=(INPUTS, VALUES),
        loss=nn.functional.mse_loss,
        metric=Metric("auc", broken),
    )
    trainer = Trainer(task, 0, metric_failed=lambda failure: told.append(str(failure)))
    update = trainer.work(build(task, 0).flat(), lambda i: (INPUTS, VALUES), local_steps=3, learning_rate=0.1)
    assert [step.metric for step in update.steps] == [None] * 3
    assert update.steps[2].loss < update.steps[0].loss
    assert told == ["metric 'auc' raised ValueError: only one class"]


def test_the_metric_of_a_batch_is_that_of_its_parts_by_size() -> None:
    task = Task(
        model=lambda: nn.Linear(3, 1),
        train=(INPUTS, VALUES),
        test=(INPUTS, VALUES),
        loss=nn.functional.mse_loss,
        metric=Metric("neg", lambda o, t: -nn.functional.mse_loss(o, t)),
    )
    trainer = Trainer(task, 0)
    for micro_batch in (None, 5):
        step = trainer.gradient(INPUTS, VALUES, micro_batch=micro_batch)
        assert step.metric == pytest.approx(-step.loss, rel=1e-5)
    plain = Task(
        model=lambda: nn.Linear(3, 1), train=(INPUTS, VALUES), test=(INPUTS, VALUES), loss=nn.functional.mse_loss
    )
    assert Trainer(plain, 0).gradient(INPUTS, VALUES).metric is None


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
NOISY = Task(model=Noisy, train=(X, Y), test=(X, Y))


def _noisy_update(seed: int, key: int, steps: int = 2) -> Flat:
    trainer = Trainer(NOISY, seed)
    order = _order(40)
    update = trainer.work(
        build(NOISY, 0).flat(),
        lambda i: trainer.samples(order.take(10 * i, 10)),
        local_steps=steps,
        learning_rate=0.1,
        key=(key,),
    )
    return update.flat.copy()


def test_dropout_is_fixed_by_seed_and_work_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = _noisy_update(0, 1)
    assert torch.equal(torch.rand(1), expected)
    torch.rand(7)
    assert np.array_equal(one, _noisy_update(0, 1))
    assert not np.array_equal(one, _noisy_update(0, 2))
    assert not np.array_equal(one, _noisy_update(1, 1))


@pytest.mark.parametrize("steps", [1, 3])
def test_running_statistics_travel_as_a_change(steps: int) -> None:
    update = _noisy_update(0, 1, steps)
    model = build(NOISY, 0)
    mean = model.manifest.views(update)["body.1.running_mean"]
    assert np.abs(mean).max() > 0
    assert np.abs(mean).max() < 1


def test_a_loss_that_explodes_is_caught_with_its_step() -> None:
    task = load_task("digits")
    trainer, order = Trainer(task, 0), _order(1497)
    with pytest.raises(NonFiniteUpdate) as caught:
        trainer.work(
            build(task, 0).flat(),
            lambda i: trainer.samples(order.take(32 * i, 32)),
            local_steps=20,
            learning_rate=1e30,
        )
    assert 1 <= caught.value.step < 20


def test_work_that_cannot_be() -> None:
    trainer = Trainer(NOISY, 0)
    flat = build(NOISY, 0).flat()
    for steps, rate in ((0, 0.1), (1, 0.0), (1, -1.0), (1, float("nan"))):
        with pytest.raises(InvalidInput, match="above 0"):
            trainer.work(flat, lambda i: (X, Y), local_steps=steps, learning_rate=rate)
    with pytest.raises(ProtocolError, match="shape"):
        trainer.work(flat[:-1], lambda i: (X, Y), local_steps=1, learning_rate=0.1)


def test_mixed_precision_stays_near_full_precision() -> None:
    task = load_task("digits")
    inputs, targets = Trainer(task, 0).samples(range(64))
    half, full = (Trainer(task, 0, precision=p) for p in ("bfloat16", "float32"))
    losses = [t.gradient(inputs, targets).loss for t in (half, full)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    cosine = torch.cosine_similarity(half.model.gradients, full.model.gradients, dim=0)
    assert float(cosine) > 0.99


class Reused(nn.Module):
    """Its backward pass needs `scale` after `scale`'s own gradient is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) * self.scale.detach() * 2 + self.scale
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.second(self.first(x).relu()).relu())
        return out


@pytest.mark.parametrize(("module", "fusible"), [(Reused, False), (Tied, True), (Noisy, True)])
def test_descending_within_the_backward_pass_changes_no_result(module: type[nn.Module], fusible: bool) -> None:
    task = Task(model=module, train=(X, Y), test=(X, Y))
    updates = []
    for micro_batch in (None, 10):  # a batch that may be cut is not descended along within the backward pass
        trainer, order = Trainer(task, 0), _order(40)
        update = trainer.work(
            build(task, 0).flat(),
            lambda i, t=trainer, o=order: t.samples(o.take(10 * i, 10)),  # type: ignore[misc]
            local_steps=3,
            learning_rate=0.1,
            micro_batch=micro_batch,
        )
        updates.append((update.flat.copy(), [step.grad_norm for step in update.steps]))
        assert trainer._fusible is (fusible if micro_batch is None else None)
    assert np.allclose(updates[0][0], updates[1][0], atol=1e-6)
    assert updates[0][1] == pytest.approx(updates[1][1], rel=1e-5)
