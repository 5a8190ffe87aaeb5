"""Tasks that differ are told apart, and those that do not are not, whatever they draw by."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from hypergpu.common.identity import differences
from hypergpu.tasks import Task, build, load_task
from hypergpu.tasks.identity import identity_of

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(200) % 3


def plain(**fields: Any) -> Task:
    model: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))  # noqa: E731
    return replace(Task(model=model, train=(X[:150], Y[:150]), test=(X[150:], Y[150:])), **fields)


def told(here: Task, there: Task, seed: int = 0) -> list[str]:
    return differences(*(identity_of(task, build(task, seed), seed) for task in (here, there)))


class Images(Dataset[Any]):
    """A map-style data set, whose samples may be augmented."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, noise: Callable[[], float] = lambda: 0.0) -> None:
        self.x, self.y, self.noise = x, y, noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + self.noise(), self.y[index]


def frozen(value: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        first = nn.Linear(6, 8)
        first.weight.requires_grad_(False).mul_(value)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 3))

    return make


def test_the_same_task_is_the_same() -> None:
    assert told(plain(), plain()) == []
    assert told(load_task("digits"), load_task("digits")) == []


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (plain(train=(X[:75], Y[:75])), "150 train samples here, 75 there"),
        (plain(test=(X[151:], Y[151:])), "50 test samples here, 49 there"),
        (plain(train=(X[:150], (Y[:150] + 1) % 3)), "classes of the train data"),
        (plain(test=(X[150:], Y[150:].flip(0))), "classes of the test data"),
        (plain(train=(X[50:], Y[:150])), "different train inputs"),
        (plain(train=(X[:150] * 2, Y[:150])), "different train inputs"),
        (plain(train=(X[:150].double(), Y[:150])), "types, shapes or classes of the train data"),
        (plain(loss=nn.CrossEntropyLoss(label_smoothing=0.1)), "different gradients of the untrained model"),
        (
            plain(model=lambda: nn.Sequential(plain().model(), nn.Dropout(0.5))),
            "different model",
        ),
        (plain(train=(X[:150], Y[:150].float())), "types, shapes or classes of the train data"),
        (plain(model=lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))), "outputs of the untrained"),
        (plain(loss=lambda o, t: 2 * nn.functional.cross_entropy(o, t)), "loss of the untrained model"),
    ],
)
def test_another_task_is_told_apart(there: Task, expected: str) -> None:
    assert any(expected in difference for difference in told(plain(), there))


def test_whole_numbers_are_the_same_in_any_width() -> None:
    for targets in (Y[:150].to(torch.int32), Y[:150].to(torch.uint8).numpy()):
        found = told(
            plain(), plain(train=(X[:150], targets), loss=lambda o, t: nn.functional.cross_entropy(o, t.long()))
        )
        assert found == []


def test_what_is_drawn_anew_every_time_is_not_compared() -> None:
    own = np.random.default_rng()

    class Soft(Images):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return self.x[index], torch.tensor(own.random(3), dtype=torch.float32)

    class Noisy(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input + torch.rand(()))

    soft = plain(train=Soft(X[:150], Y[:150]))
    assert told(soft, soft) == []
    noisy = plain(model=lambda: Noisy(6, 3))
    assert told(noisy, noisy) == []
    names = {numbers.name for numbers in identity_of(noisy, build(noisy, 0), 0).numbers}
    assert names == {"train inputs", "test inputs"}


def test_regressions_are_compared_by_their_numbers() -> None:
    def task(targets: torch.Tensor) -> Task:
        return plain(train=(X[:150], targets), loss=nn.functional.mse_loss, model=lambda: nn.Linear(6, 1))

    values = X[:150, :1] * 3
    assert told(task(values), task(values * (1 + 1e-6))) == [], "as another processor may round them"
    assert any("different train targets" in each for each in told(task(values), task(values.flip(0))))


def test_frozen_layers_are_compared_though_they_do_not_travel() -> None:
    assert told(plain(model=frozen(1.0)), plain(model=frozen(1.0))) == []
    found = told(plain(model=frozen(1.0)), plain(model=frozen(1.5)))
    assert any(each.startswith("different values of '0.weight', which does not travel") for each in found)


def test_data_sets_are_compared_by_index_and_augmentation_may_draw_at_random() -> None:
    data = Images(X[:150], Y[:150])
    assert told(plain(train=data), plain(train=Images(X[:150], Y[:150]))) == []
    assert told(plain(train=data), plain(train=Images(X[50:], Y[:150])))
    assert told(plain(train=data), plain(train=Images(X[:150], Y[50:])))
    for noise in (lambda: float(torch.rand(())), random.random, lambda: float(np.random.rand())):
        assert told(plain(train=Images(X[:150], Y[:150], noise)), plain(train=Images(X[:150], Y[:150], noise))) == []
    own = np.random.default_rng()
    wild = plain(train=Images(X[:150], Y[:150], own.random))
    assert [each for each in told(wild, wild) if "train inputs" in each] == [], "what is never the same is not compared"


def test_a_data_set_that_knows_its_targets_is_compared_by_all_of_them() -> None:
    class Known(Images):
        def __init__(self, y: torch.Tensor) -> None:
            super().__init__(X[:150], Y[:150])
            self.targets = y.tolist()

    other = Y[:150].clone()
    other[77] += 1
    assert told(plain(train=Known(Y[:150])), plain(train=Known(Y[:150]))) == []
    assert any("classes of the train data" in e for e in told(plain(train=Known(Y[:150])), plain(train=Known(other))))


def test_a_model_that_cannot_be_evaluated_is_compared_by_the_rest() -> None:
    broken = plain(loss=lambda outputs, targets: 1 / 0)
    assert told(broken, broken) == []


def test_the_model_and_the_global_generators_are_left_as_they_were() -> None:
    task = plain()
    model = build(task, 0)
    before, state = model.flat(), random.getstate()
    model.module.train()
    identity_of(task, model, 0)
    assert np.array_equal(model.flat(), before)
    assert model.module.training
    assert random.getstate() == state


SPLIT = """
import numpy as np, random, torch
from torch import nn
from torch.utils.data import TensorDataset, random_split
from hypergpu.tasks import Task
drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
def factory():
    x, y = torch.randn(100, 4), torch.randint(0, 2, (100,))
    train, test = random_split(TensorDataset(x, y), [80, 20])
    return Task(model=lambda: nn.Linear(4, 2), train=train, test=test, name=str(drawn))
"""


def test_a_factory_that_splits_at_random_splits_alike_on_every_side(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("one_side", "other_side"):  # two modules stand for two processes
        (tmp_path / f"{name}.py").write_text(SPLIT)
    first = load_task("one_side:factory", 7)
    torch.manual_seed(99)
    random.seed(99)
    second = load_task("other_side:factory", 7)
    assert first.name == second.name, "what the module draws when it is imported"
    assert told(first, second, 7) == []
    assert told(first, load_task("one_side:factory", 8), 7)
