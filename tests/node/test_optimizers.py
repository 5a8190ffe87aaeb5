"""Local steps of each optimizer, held against torch's own optimizers on the same batches."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypergpu.common.errors import InvalidInput
from hypergpu.common.local_optimizer import LocalOptimizer, LocalSettings
from hypergpu.common.tensors import Flat
from hypergpu.node.optimizers import KeptState, LocalTraining, OptimizerState, muon
from hypergpu.node.trainer import Trainer
from hypergpu.tasks import Task, build

_DRAWS = torch.Generator().manual_seed(1)
X, Y = torch.randn(96, 1, 6, 6, generator=_DRAWS), torch.randint(0, 4, (96,), generator=_DRAWS)
STEPS, SIZE = 4, 8

TorchOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


def small(**options: Any) -> Task:
    """Return a task whose model has kernels, matrices and vectors."""
    return Task(
        model=lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Tanh(), nn.Linear(48, 4)),
        train=(X, Y),
        test=(X, Y),
        **options,
    )


def batch(index: int, first: int = 0) -> tuple[Tensor, Tensor]:
    start = (first + index) * SIZE
    return X[start : start + SIZE], Y[start : start + SIZE]


def ours(local: LocalTraining, first: int = 0, task: Task | None = None, parameters: Flat | None = None) -> Flat:
    """Return the parameters after the local steps of a work unit."""
    trainer = Trainer(task or small(), 0)
    start = trainer.model.flat() if parameters is None else parameters
    update = trainer.work(start, partial(batch, first=first), local_steps=STEPS, local=local)
    return start + update.flat


def theirs(make: TorchOptimizer, rate: float, steps: int = STEPS, clip: float | None = None, pull: float = 0.0) -> Flat:
    """Return the parameters after the same steps by an optimizer of torch."""
    model = build(small(), 0)
    parameters = list(model.module.parameters())
    start = [each.detach().clone() for each in parameters]
    optimizer = make(parameters, rate)
    for index in range(steps):
        optimizer.zero_grad(set_to_none=False)
        inputs, targets = batch(index)
        nn.functional.cross_entropy(model.module(inputs), targets).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        for parameter, at_first in zip(parameters, start, strict=True):
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - at_first, alpha=pull)
        optimizer.step()
    return model.flat()


CASES: Mapping[str, tuple[str, LocalSettings, TorchOptimizer]] = {
    "sgd": ("sgd", LocalSettings(), torch.optim.SGD),
    "momentum": ("sgd", LocalSettings(momentum=0.9), lambda p, r: torch.optim.SGD(p, r, momentum=0.9)),
    "nesterov": (
        "sgd",
        LocalSettings(momentum=0.8, nesterov=True, weight_decay=0.1),
        lambda p, r: torch.optim.SGD(p, r, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "adamw": ("adamw", LocalSettings(), torch.optim.AdamW),
    "adamw decay": ("adamw", LocalSettings(weight_decay=0.3), lambda p, r: torch.optim.AdamW(p, r, weight_decay=0.3)),
}


@pytest.mark.parametrize("case", CASES)
def test_local_steps_are_those_of_torch(case: str) -> None:
    name, settings, make = CASES[case]
    expected = theirs(make, 0.05)
    found = ours(LocalTraining(LocalOptimizer(name, 0.05), settings))
    assert np.abs(expected - build(small(), 0).flat()).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-6)


class _MatricesAsTorchTakesThem(torch.optim.Optimizer):
    """Muon for matrices and AdamW for all else, from torch's classes."""

    def __init__(self, parameters: list[nn.Parameter], rate: float) -> None:
        super().__init__(parameters, {})
        self._parameters = parameters
        self._views = [p.detach().view(len(p), -1) for p in parameters if p.ndim >= 2]
        self._muon = torch.optim.Muon(self._views, rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW([p for p in parameters if p.ndim < 2], rate)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        matrices = [p for p in self._parameters if p.ndim >= 2]
        for view, parameter in zip(self._views, matrices, strict=True):
            assert parameter.grad is not None
            view.grad = parameter.grad.view(len(parameter), -1)
        self._muon.step()
        self._adamw.step()


def test_muon_moves_matrices_and_kernels_and_adamw_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "_SMALL", 0)  # bfloat16 for every matrix, as torch has it
    expected = theirs(_MatricesAsTorchTakesThem, 0.02)
    np.testing.assert_allclose(ours(LocalTraining(LocalOptimizer("muon", 0.02))), expected, atol=2e-6)
    assert np.abs(expected - theirs(CASES["adamw"][2], 0.02)).max() > 0.01


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (300, 200)])
def test_an_orthogonal_matrix_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, before, right = torch.linalg.svd(matrix, full_matrices=False)
    found = (left.T @ muon.orthogonal(matrix).float() @ right.T).numpy()
    assert before.max() > 5 * before.min()
    np.testing.assert_allclose(found - np.diag(found.diagonal()), 0.0, atol=0.02)
    assert found.diagonal().min() > 0.6
    assert found.diagonal().max() < 1.3


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_gradients_are_clipped_as_by_torch(name: str) -> None:
    make = CASES[name][2]
    expected = theirs(make, 0.05, clip=0.1)
    local = LocalTraining(LocalOptimizer(name, 0.05), LocalSettings(clip_norm=0.1))
    np.testing.assert_allclose(ours(local), expected, atol=2e-6)
    assert np.abs(expected - theirs(make, 0.05)).max() > 1e-3


def test_the_gradient_that_is_sent_is_clipped_too() -> None:
    trainer = Trainer(small(), 0)
    local = LocalTraining(LocalOptimizer("sgd", 1.0), LocalSettings(clip_norm=0.1))
    update = trainer.work(trainer.model.flat(), batch, local_steps=1, local=local)
    assert np.linalg.norm(update.flat) == pytest.approx(0.1, rel=1e-5)
    assert update.steps[0].grad_norm > 0.2, "the norm that is reported is that of the gradient itself"


def test_the_proximal_term_pulls_back_to_the_parameters_of_the_order() -> None:
    expected = theirs(CASES["sgd"][2], 0.05, pull=5.0)
    local = LocalTraining(LocalOptimizer("sgd", 0.05), LocalSettings(proximal=5.0))
    np.testing.assert_allclose(ours(local), expected, atol=2e-6)
    start = build(small(), 0).flat()
    assert np.linalg.norm(expected - start) < 0.8 * np.linalg.norm(theirs(CASES["sgd"][2], 0.05) - start)


@pytest.mark.parametrize(("name", "steps", "takes_time"), [("sgd", 4, False), ("muon", 1, False), ("muon", 4, True)])
def test_an_update_tells_the_share_of_the_optimizer(name: str, steps: int, takes_time: bool) -> None:
    trainer = Trainer(small(), 0)
    local = LocalTraining(LocalOptimizer(name, 0.01))
    update = trainer.work(trainer.model.flat(), batch, local_steps=steps, local=local)
    times = [step.optimizer_time for step in update.steps]
    assert (min(times) > 0.0) is takes_time
    assert update.optimizer_share == pytest.approx(sum(times) / (sum(times) + sum(s.step_time for s in update.steps)))
    assert (0.0 < update.optimizer_share < 1.0) is takes_time


# ---------------------------------------------------------------- state between work units


@pytest.mark.parametrize("name", ["momentum", "adamw", "muon", "task"])
def test_two_work_units_that_keep_their_state_are_one_twice_as_long(name: str) -> None:
    optimizer, settings, _ = CASES.get(name, (name, LocalSettings(), None))
    task = small(optimizer=torch.optim.RMSprop)
    local = LocalTraining(LocalOptimizer(optimizer, 0.02), settings, OptimizerState())
    half = ours(local, task=task)
    whole = ours(local, first=STEPS, task=task, parameters=half)
    trainer = Trainer(task, 0)
    start = trainer.model.flat()
    once = trainer.work(start, batch, local_steps=2 * STEPS, local=local._replace(state=None))
    np.testing.assert_allclose(whole, start + once.flat, atol=3e-6)
    without = ours(local._replace(state=None), first=STEPS, task=task, parameters=half)
    assert np.abs(without - whole).max() > 1e-3


def state_of(value: float) -> OptimizerState:
    return OptimizerState({"first": torch.tensor([value])})


def value_of(state: OptimizerState) -> float | None:
    found = state.tensors.get("first")
    return None if found is None else float(found)


def test_the_state_of_an_accepted_update_is_kept_and_that_of_a_lost_one_is_not() -> None:
    kept = KeptState()
    assert value_of(kept.begin("adamw", 0)) is None
    kept.stage(1, "adamw", state_of(1.0))
    assert value_of(kept.begin("adamw", 1)) == 1.0
    kept.stage(2, "adamw", state_of(2.0))
    assert value_of(kept.begin("adamw", 1)) == 1.0, "the update of round 2 was late"
    assert value_of(kept.begin("adamw", 2)) == 1.0, "it is not asked for again"
    kept.stage(5, "adamw", state_of(5.0))
    assert value_of(kept.begin("adamw", 5)) == 5.0
    assert value_of(kept.begin("sgd", 5)) is None, "the state of another optimizer"
    assert value_of(kept.begin("adamw", 5)) == 5.0, "a trial of another optimizer leaves the state alone"


def test_a_work_unit_that_is_lost_leaves_no_trace_in_the_state() -> None:
    kept = KeptState()
    kept.stage(1, "adamw", state_of(1.0))
    first = kept.begin("adamw", 1)
    first.tensors["first"].fill_(9.0)  # as its steps do
    assert value_of(kept.begin("adamw", 1)) == 1.0


# ---------------------------------------------------------------- the task's own optimizer


def test_a_task_brings_its_own_optimizer_in_a_line() -> None:
    task = small(optimizer=torch.optim.RMSprop)
    found = ours(LocalTraining(LocalOptimizer("task", 0.01)), task=task)
    np.testing.assert_allclose(found, theirs(torch.optim.RMSprop, 0.01), atol=2e-6)


def test_the_learning_rate_of_the_order_holds_for_a_kept_optimizer() -> None:
    task, state = small(optimizer=partial(torch.optim.SGD, momentum=0.0)), OptimizerState()
    half = ours(LocalTraining(LocalOptimizer("task", 0.1), state=state), task=task)
    slower = LocalTraining(LocalOptimizer("task", 1e-9), state=state)
    np.testing.assert_allclose(ours(slower, task=task, parameters=half), half, atol=1e-6)


def test_an_optimizer_that_is_missing_or_raises_is_named() -> None:
    with pytest.raises(InvalidInput, match="task 'task' brings no optimizer"):
        ours(LocalTraining(LocalOptimizer("task", 0.1)))

    def broken(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        raise KeyError("decay")

    with pytest.raises(InvalidInput, match="the optimizer of task 'odd' raised KeyError: 'decay'"):
        ours(LocalTraining(LocalOptimizer("task", 0.1)), task=small(name="odd", optimizer=broken))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"momentum": 1.0}, "momentum of 1.0"),
        ({"momentum": float("nan")}, "momentum of nan"),
        ({"weight_decay": -0.1}, "weight decay of -0.1"),
        ({"weight_decay": float("inf")}, "weight decay of inf"),
        ({"proximal": float("nan")}, "proximal weight of nan"),
        ({"clip_norm": 0.0}, "clip to of 0.0"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        replace(LocalSettings(), **wrong)  # type: ignore[arg-type]
