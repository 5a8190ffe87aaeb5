"""The fingerprint of a task's data: the same for the same data, another for any other."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hypergpu.tasks import Task, load_task
from hypergpu.tasks.fingerprint import fingerprint
from hypergpu.tasks.samples import Data


def task(train: Data, test: Data | None = None) -> Task:
    return Task(model=lambda: nn.Linear(3, 2), train=train, test=test if test is not None else train)


def data(samples: int = 200) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(samples, 3, generator=draw), torch.randint(0, 2, (samples,), generator=draw)


def changed(part: Tensor, at: int) -> Tensor:
    copy = part.clone()
    copy[at] += 1
    return copy


def test_the_same_data_has_the_same_fingerprint() -> None:
    assert fingerprint(task(data())) == fingerprint(task(data()))
    x, y = data()
    assert fingerprint(task((x.numpy(), y.numpy()))) == fingerprint(task((x, y)))
    assert fingerprint(load_task("digits")) == fingerprint(load_task("digits"))
    assert len(fingerprint(task(data()))) == 16


def test_any_other_data_has_another() -> None:
    x, y = data()
    own = fingerprint(task((x, y)))
    others: list[tuple[Any, Any]] = [((x, changed(y, at)), (x, y)) for at in (0, 1, 100, 199)]
    others += [((changed(x, at), y), (x, y)) for at in (0, 199)]
    others += [((x, y), (x, changed(y, 7)))]
    others += [
        ((x[:-1], y[:-1]), (x, y)),
        ((x, y), (x[:-1], y[:-1])),
        ((x.double(), y), (x, y)),
        ((x, y.int()), (x, y)),
    ]
    others += [((x.flip(0), y), (x, y)), ((x, y.flip(0)), (x, y)), ((x.reshape(200, 1, 3), y), (x, y))]
    found = [fingerprint(task(*other)) for other in others]
    assert own not in found
    assert len(set(found)) == len(found)


class Augmented(Dataset[Any]):
    def __init__(self, labels: list[int], size: int = 3) -> None:
        self.labels, self.size = labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(self.size), self.labels[index]


def test_a_dataset_that_augments_at_random_is_the_same_still() -> None:
    labels = [index % 3 for index in range(100)]
    own = fingerprint(task(Augmented(labels)))
    assert fingerprint(task(Augmented(labels))) == own
    assert fingerprint(task(Augmented([*labels[1:], 0]))) != own
    assert fingerprint(task(Augmented(labels[:-1]))) != own
    assert fingerprint(task(Augmented(labels, size=4))) != own


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65])
def test_few_samples_are_all_read(samples: int) -> None:
    x, y = data(samples)
    seen = {fingerprint(task((changed(x, at), y), data())) for at in range(min(samples, 64))}
    assert len(seen) >= min(samples, 63)
