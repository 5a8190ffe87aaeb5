import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from hypergpu.common.errors import InvalidInput
from hypergpu.tasks import Task, evaluate
from hypergpu.tasks.memory import in_batches, is_out_of_memory

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 2


def chained(error: Exception, cause: Exception | None) -> Exception:
    error.__cause__ = cause
    return error


def test_memory_that_ran_out_is_recognised_by_type_and_by_message() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 50)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_numpy.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(chained(InvalidInput("the data set ended"), MemoryError()))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(chained(InvalidInput("out of memory"), KeyError("memory")))


def test_batches_are_halved_until_they_fit_and_no_sample_is_taken_twice() -> None:
    taken: list[tuple[int, int]] = []

    def take(start: int, size: int) -> None:
        if size > 5:
            raise MemoryError
        taken.append((start, size))

    assert in_batches(23, 20, take) == 5
    assert taken == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]


def test_batches_that_fit_keep_their_size() -> None:
    taken: list[tuple[int, int]] = []
    assert in_batches(7, 3, lambda start, size: taken.append((start, size))) == 3
    assert taken == [(0, 3), (3, 3), (6, 1)]


def test_a_single_sample_that_does_not_fit_is_an_error() -> None:
    sizes: list[int] = []

    def take(start: int, size: int) -> None:
        sizes.append(size)
        raise MemoryError

    with pytest.raises(MemoryError):
        in_batches(9, 6, take)
    assert sizes == [6, 3, 1]


def test_another_error_is_not_tried_again() -> None:
    sizes: list[int] = []

    def take(start: int, size: int) -> None:
        sizes.append(size)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        in_batches(9, 6, take)
    assert sizes == [6]


class Greedy(nn.Module):
    """Holds 8 samples at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.sizes: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(inputs))
        if len(inputs) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        out: torch.Tensor = self.layer(inputs)
        return out


def test_an_evaluation_takes_what_fits_and_counts_each_sample_once() -> None:
    model = Greedy()
    task = Task(model=Greedy, train=(X, Y), test=(X, Y))
    result = evaluate(model, task, batch_size=25)
    assert (result.samples, result.batch_size) == (50, 6)
    assert model.sizes == [25, 12, *[6] * 8, 2]
    with torch.no_grad():
        outputs = model.layer(X)
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(outputs, Y)), rel=1e-6)
    assert result.metric == pytest.approx(float((outputs.argmax(1) == Y).float().mean()), rel=1e-6)
    assert model.training


def test_memory_that_runs_out_in_the_metric_counts_no_loss_twice() -> None:
    def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        if len(outputs) > 10:
            raise MemoryError
        return 0.5

    plain = Task(model=lambda: nn.Linear(3, 2), train=(X, Y), test=(X, Y), accuracy=lambda o, t: 0.5)
    greedy = Task(model=lambda: nn.Linear(3, 2), train=(X, Y), test=(X, Y), accuracy=accuracy)
    model = plain.model()
    assert evaluate(model, greedy, batch_size=40).loss == pytest.approx(evaluate(model, plain).loss, rel=1e-6)


class Large(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Holds two samples at once."""

    def __init__(self) -> None:
        self.held = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.held += 1
        if self.held > 2:
            self.held = 0
            raise MemoryError
        return X[index], Y[index]


def test_memory_that_runs_out_in_a_data_set_is_no_fault_of_its_samples() -> None:
    data = Large()

    class Freed(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            data.held = 0
            return super().forward(input)

    task = Task(model=lambda: nn.Linear(3, 2), train=(X, Y), test=data)
    assert evaluate(Freed(3, 2), task, batch_size=4).batch_size == 2
