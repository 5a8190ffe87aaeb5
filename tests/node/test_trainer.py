import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hypergpu.common.errors import InvalidInput, NonFiniteUpdate, OutOfMemory, ProtocolError, UnknownName
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.tensors import Flat
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.trainer import Trainer
from hypergpu.tasks import Metric, Task, build, load_task
from hypergpu.tasks.partition import ShardOrder, partition
from hypergpu.tasks.samples import fetch


def sgd(rate: float) -> LocalTraining:
    return LocalTraining(LocalOptimizer("sgd", rate))


def adamw(rate: float) -> LocalTraining:
    return LocalTraining(LocalOptimizer("adamw", rate))


def _order(samples: int, index: int = 0, shards: int = 1) -> ShardOrder:
    return ShardOrder(partition("iid", samples, shards, 5), index)


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
        update = trainer.work(parameters, lambda i, b=batch: b, local_steps=1, local=sgd(1.0))  # type: ignore[misc]
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
    update = trainer.work(parameters, lambda i: trainer.samples(order.take(32 * i, 32)), local_steps=4, local=sgd(0.1))
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad(set_to_none=False)
        inputs, targets = trainer.samples(order.take(32 * step, 32))
        task.loss(model.module(inputs), targets).backward()
        optimizer.step()
    assert np.allclose(update.flat, model.flat() - parameters, atol=1e-6)
    assert (update.samples, len(update.steps)) == (128, 4)


@pytest.mark.parametrize("micro_batch", [None, 10])
def test_the_loss_after_the_work_is_that_of_the_first_batch_with_the_same_random_numbers(
    micro_batch: int | None,
) -> None:
    whole = load_task("digits")
    dropout = lambda: nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 10))  # noqa: E731
    trainer = Trainer(Task(model=dropout, train=whole.train, test=whole.test, name="dropout"), 0)
    parameters, batch = build(trainer.task, 0).flat(), trainer.samples(_order(1497).take(0, 32))

    def work(rate: float, steps: int = 3) -> Any:
        return trainer.work(
            parameters, lambda _: batch, local_steps=steps, local=sgd(rate), key=(1,), micro_batch=micro_batch
        )

    still = work(1e-30)
    assert still.loss_after == pytest.approx(still.steps[0].loss, rel=1e-5), "the same dropout as in the first step"
    update = work(0.1)
    assert update.loss_after is not None
    assert update.loss_after < 0.95 * update.steps[0].loss
    assert work(0.1, steps=1).loss_after is None, "a gradient changes nothing"
    assert np.array_equal(work(0.1).flat, update.flat), "measuring leaves no trace"


def test_local_steps_by_adamw_are_those_of_torch_and_begin_without_state_each_time() -> None:
    task = load_task("digits")
    trainer, order = Trainer(task, 0), _order(1497)
    parameters = build(task, 0).flat()
    for start in (0, 96):  # the second work unit does not go on with the moments of the first
        model = build(task, 0)
        update = trainer.work(
            parameters,
            lambda i, start=start: trainer.samples(order.take(start + 32 * i, 32)),  # type: ignore[misc]
            local_steps=3,
            local=adamw(0.002),
        )
        optimizer = torch.optim.AdamW(model.module.parameters(), lr=0.002)
        for step in range(3):
            optimizer.zero_grad(set_to_none=False)
            inputs, targets = trainer.samples(order.take(start + 32 * step, 32))
            task.loss(model.module(inputs), targets).backward()
            optimizer.step()
        change = model.flat() - parameters
        assert np.abs(change).max() > 0.003
        assert np.allclose(update.flat, change, atol=2e-6)


def test_adamw_does_not_import_a_compiler() -> None:
    """The class of torch.optim does: seconds, in the first work unit of each node."""
    code = """
import sys
from hypergpu.common.local_optimizer import ADAMW
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.trainer import Trainer
from hypergpu.tasks import load_task
trainer = Trainer(load_task("digits"), 0)
parameters, samples = trainer.model.flat(), trainer.samples(range(8))
update = trainer.work(parameters, lambda _: samples, local_steps=2, local=LocalTraining(ADAMW))
assert abs(update.flat).max() > 0.0005
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_a_single_step_sends_the_gradient_whatever_the_local_optimiser() -> None:
    trainer, order = Trainer(load_task("digits"), 0), _order(1497)
    parameters = trainer.model.flat()
    by_sgd, by_adamw = (
        trainer.work(
            parameters,
            lambda _: trainer.samples(order.take(0, 32)),
            local_steps=1,
            local=local,
        ).flat.copy()
        for local in (sgd(0.1), adamw(0.1))
    )
    np.testing.assert_array_equal(by_sgd, by_adamw)


def test_an_unknown_local_optimiser_is_named() -> None:
    trainer = Trainer(load_task("digits"), 0)
    with pytest.raises(UnknownName, match="did you mean 'adamw'"):
        trainer.work(
            trainer.model.flat(),
            lambda _: trainer.samples(range(8)),
            local_steps=2,
            local=LocalTraining(LocalOptimizer("adam", 0.1)),
        )


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
    update = trainer.work(build(task, 0).flat(), lambda i: (INPUTS, VALUES), local_steps=3, local=sgd(0.1))
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
        local=sgd(0.1),
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
            local=sgd(1e30),
        )
    assert 1 <= caught.value.step < 20


def test_work_that_cannot_be() -> None:
    trainer = Trainer(NOISY, 0)
    flat = build(NOISY, 0).flat()
    for steps, rate in ((0, 0.1), (1, 0.0), (1, -1.0), (1, float("nan"))):
        with pytest.raises(InvalidInput, match="above 0"):
            trainer.work(flat, lambda i: (X, Y), local_steps=steps, local=sgd(rate))
    with pytest.raises(ProtocolError, match="shape"):
        trainer.work(flat[:-1], lambda i: (X, Y), local_steps=1, local=sgd(0.1))


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
            local=sgd(0.1),
            micro_batch=micro_batch,
        )
        updates.append((update.flat.copy(), [step.grad_norm for step in update.steps]))
        assert trainer._fusible is (fusible if micro_batch is None else None)
    assert np.allclose(updates[0][0], updates[1][0], atol=1e-6)
    assert updates[0][1] == pytest.approx(updates[1][1], rel=1e-5)


class Block(nn.Module):
    """One layer, used twice, as `how` says: 'plain', or under activation checkpointing of either kind."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.block, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def use(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "plain":
            return torch.tanh(self.block(x))
        out: torch.Tensor = checkpoint(lambda y: torch.tanh(self.block(y)), x, use_reentrant=self.how == "reentrant")
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.use(self.use(self.first(x))))
        return out


class Recomputed(nn.Module):
    """The recomputed part reads `scale` without a gradient; its own gradient is complete, once, before that."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.layer, self.scale = nn.Linear(6, 6), nn.Linear(6, 3), nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = checkpoint(
            lambda y: torch.tanh(self.layer(y) * self.scale.detach()), self.first(x), use_reentrant=self.reentrant
        )
        return inner * 3 + self.scale


class TiedUnderCheckpoint(nn.Module):
    """The weight of the checkpointed layer is that of the last one, too."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.last.weight = self.second.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.first(x)
        outer: torch.Tensor = checkpoint(lambda y: torch.tanh(self.second(y)), inner, use_reentrant=self.reentrant)
        out: torch.Tensor = self.last(inner) * outer
        return out


class LaterTwice(Block):
    """The block is used once in the trial and the first two steps, and twice from then on."""

    def __init__(self) -> None:
        super().__init__("reentrant")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.use(self.first(x))
        if float(x.mean()) > LATER:
            hidden = self.use(hidden)
        out: torch.Tensor = self.last(hidden)
        return out


class Zeroing(nn.Module):
    """Its own code throws gradients away, as careless code does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.zero_grad(set_to_none=True)
        out: torch.Tensor = self.layer(x)
        return out


BATCHES = [(X[10 * i : 10 * i + 10] + 0.2 * i, Y[10 * i : 10 * i + 10]) for i in range(4)]
LATER = float(BATCHES[2][0].mean()) - 1e-3


def _plain_sgd(make: Callable[[], nn.Module], rate: float) -> Flat:
    task = Task(model=make, train=(X, Y), test=(X, Y))
    model = build(task, 0)
    before, module = model.flat(), build(task, 0).module
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    module.train()
    for x, y in BATCHES:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()
    change: Flat = after - before
    return change


@pytest.mark.parametrize(
    ("make", "fusible"),
    [
        (lambda: Block("plain"), True),
        (lambda: Block("reentrant"), False),
        (lambda: Block("not reentrant"), True),
        (lambda: Recomputed(reentrant=True), False),
        (lambda: Recomputed(reentrant=False), False),
        (lambda: TiedUnderCheckpoint(reentrant=True), False),
        (lambda: TiedUnderCheckpoint(reentrant=False), True),
        (LaterTwice, False),
        (Reused, False),
        (Tied, True),
        (Zeroing, True),
    ],
)
def test_local_steps_are_those_of_plain_sgd(make: Callable[[], nn.Module], fusible: bool) -> None:
    rate = 0.5
    trainer = Trainer(Task(model=make, train=(X, Y), test=(X, Y)), 0)
    told: list[float] = []
    update = trainer.work(
        trainer.model.flat(),
        lambda i: BATCHES[i],
        local_steps=len(BATCHES),
        local=sgd(rate),
        after_step=lambda step: told.append(step.loss),
    )
    expected = _plain_sgd(make, rate)
    assert float(np.abs(expected).max()) > 0.05
    assert np.allclose(update.flat, expected, rtol=0, atol=1e-6)
    assert trainer._fusible is fusible
    assert told == pytest.approx([step.loss for step in update.steps], rel=1e-5)
    assert len(told) == len(BATCHES)


def test_gradients_of_a_model_that_throws_them_away_are_sent_all_the_same() -> None:
    trainer = Trainer(Task(model=Zeroing, train=(X, Y), test=(X, Y)), 0)
    update = trainer.work(trainer.model.flat(), lambda i: BATCHES[i], local_steps=1, local=sgd(0.1))
    module = build(trainer.task, 0).module
    nn.functional.cross_entropy(module(BATCHES[0][0]), BATCHES[0][1]).backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert np.allclose(update.flat, expected.numpy(), atol=1e-7)


class Counting(nn.Module):
    """KeyedRandom by all three global generators, and counts its forward passes in a buffer that does not travel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.get_buffer("passes").add_(1)
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        out: torch.Tensor = self.layer(x) * (noise + float(self.get_buffer("passes")))
        return out


def test_work_is_the_same_whatever_the_node_did_before() -> None:
    task = Task(model=Counting, train=(X, Y), test=(X, Y))
    fresh, used = Trainer(task, 0), Trainer(task, 0)
    used.measure_activations(X, Y)
    used.work(used.model.flat(), lambda i: BATCHES[i], local_steps=3, local=sgd(0.1), key=(1,))
    updates = [
        trainer.work(build(task, 0).flat(), lambda i: BATCHES[i], local_steps=2, local=sgd(0.1), key=(2,)).flat
        for trainer in (fresh, used)
    ]
    assert np.array_equal(updates[0], updates[1])


class Replacing(nn.Module):
    """Puts a new tensor into the place of its running mean, as moving averages are often written."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        out: torch.Tensor = self.layer(x - self.mean)
        return out


@pytest.mark.parametrize("steps", [1, 2])
def test_state_that_is_replaced_travels_as_state_that_is_changed(steps: int) -> None:
    trainer = Trainer(Task(model=Replacing, train=(X, Y), test=(X, Y)), 0)
    update = trainer.work(trainer.model.flat(), lambda i: BATCHES[i], local_steps=steps, local=sgd(0.1))
    expected = torch.zeros(6)
    for x, _ in BATCHES[:steps]:
        expected = 0.9 * expected + 0.1 * x.mean(0)
    assert np.allclose(trainer.model.manifest.views(update.flat)["mean"], expected.numpy(), atol=1e-6)
    loaded = trainer.model.flat()
    trainer.model.manifest.views(loaded)["mean"][:] = 7
    trainer.model.load(loaded)
    assert torch.equal(trainer.model.module.get_buffer("mean"), torch.full((6,), 7.0))


def test_state_that_changes_its_shape_is_an_error_that_names_it() -> None:
    class Growing(Replacing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.mean = x.detach()
            out: torch.Tensor = self.layer(x)
            return out

    trainer = Trainer(Task(model=Growing, train=(X, Y), test=(X, Y)), 0)
    with pytest.raises(InvalidInput, match=r"buffer 'mean' of Growing was torch.float32 of shape \(6,\)"):
        trainer.work(trainer.model.flat(), lambda i: BATCHES[i], local_steps=1, local=sgd(0.1))


def test_memory_that_runs_out_is_told_as_that() -> None:
    class Full(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    class FullBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    class Later(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = FullBackward.apply(super().forward(input))
            return out

    for module in (Full, Later):
        trainer = Trainer(Task(model=lambda m=module: m(6, 3), train=(X, Y), test=(X, Y)), 0)  # type: ignore[misc]
        with pytest.raises(OutOfMemory, match="a batch of 10") as caught:
            trainer.work(trainer.model.flat(), lambda i: BATCHES[i], local_steps=2, local=sgd(0.1))
        assert caught.value.largest_batch == 5
