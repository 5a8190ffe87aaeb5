"""Models that take several tensors, samples of different lengths, and parameters that are used in odd ways."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from hypergpu.common.errors import InvalidInput
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.trainer import Trainer
from hypergpu.tasks import Task, build, evaluate
from hypergpu.tasks.fingerprint import fingerprint
from hypergpu.tasks.identity import identity_of
from hypergpu.tasks.inputs import Several, inputs_of, shapes, tensors
from hypergpu.tasks.samples import Data, fetch

CPU = torch.device("cpu")
_DRAWS = torch.Generator().manual_seed(0)
LEFT, RIGHT = torch.randn(40, 4, generator=_DRAWS), torch.randn(40, 2, generator=_DRAWS)
Y = (LEFT[:, 0] + RIGHT[:, 0] > 0).long()


class TwoInputs(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([left, right], 1))
        return found


class SideBySide(TwoInputs):
    """The same model, of one tensor."""

    def forward(self, both: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(both[:, :4], both[:, 4:])


class Pairs(Dataset[Any]):
    """Samples whose inputs are by name or by position."""

    def __init__(self, *, named: bool) -> None:
        self._named = named

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, index: int) -> Any:
        left, right = LEFT[index], RIGHT[index]
        return ({"right": right, "left": left} if self._named else (left, right)), Y[index]


FORMS: Mapping[str, Data] = {
    "tuple": ((LEFT, RIGHT), Y),
    "mapping": ({"right": RIGHT.double().numpy(), "left": LEFT}, Y),
    "dataset": Pairs(named=False),
    "dataset by name": Pairs(named=True),
}


def task_of(data: Data) -> Task:
    return Task(model=TwoInputs, train=data, test=data)


def trained(task: Task, micro_batch: int | None = None) -> np.ndarray[Any, Any]:
    trainer = Trainer(task, 0)
    start = trainer.model.flat()
    update = trainer.work(
        start,
        lambda step: trainer.samples(range(10 * step, 10 * step + 10)),
        local_steps=3,
        local=LocalTraining(LocalOptimizer("sgd", 0.5)),
        micro_batch=micro_batch,
    )
    return start + update.flat


@pytest.mark.parametrize("form", FORMS)
def test_several_inputs_train_as_one_that_holds_them_side_by_side(form: str) -> None:
    both = torch.cat([LEFT, RIGHT], 1)
    one = Task(model=SideBySide, train=(both, Y), test=(both, Y))
    task = task_of(FORMS[form])
    np.testing.assert_allclose(trained(task), trained(one), atol=1e-6)
    np.testing.assert_allclose(trained(task, micro_batch=3), trained(one), atol=1e-6)
    model = build(task, 0).module
    assert evaluate(model, task, batch_size=7).loss == pytest.approx(evaluate(build(one, 0).module, one).loss, rel=1e-5)
    assert evaluate(model, task).metric is not None
    assert Trainer(task, 0).measure_activations(*fetch(task.train, range(8), CPU)) >= 6 * 4


@pytest.mark.parametrize("form", FORMS)
def test_the_identity_of_a_task_covers_each_of_its_inputs(form: str) -> None:
    def other(data: Data) -> Data:
        if isinstance(data, tuple):
            given: Any = data[0]
            changed = {**given, "right": RIGHT + 1} if isinstance(given, dict) else (given[0], RIGHT + 1)
            return changed, Y
        return data

    task = task_of(FORMS[form])
    same, changed = (identity_of(each, build(each, 0), 0) for each in (task, task_of(other(FORMS[form]))))
    assert identity_of(task, build(task, 0), 0) == same
    if isinstance(FORMS[form], tuple):
        assert changed != same
        assert fingerprint(task_of(other(FORMS[form]))) != fingerprint(task)
    assert len([each for each in same.numbers if each.name == "train inputs"]) == 2


class Sentences(Dataset[Any]):
    """Samples of different lengths, with the sum of their numbers as target."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens = torch.arange(1 + index % 7) % 5
        return tokens, tokens.sum().float()


def padded(samples: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
    tokens = [each for each, _ in samples]
    lengths = torch.tensor([len(each) for each in tokens])
    return {"tokens": pad_sequence(tokens, batch_first=True), "lengths": lengths}, torch.stack([y for _, y in samples])


class Bag(nn.Module):
    """Sum of an embedding's rows over the tokens that are there; its gradients are sparse."""

    def __init__(self, *, sparse: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 1, sparse=sparse)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        there = torch.arange(tokens.shape[1]) < lengths[:, None]
        found: Tensor = (self.embedding(tokens).squeeze(-1) * there).sum(1)
        return found


def test_samples_of_different_lengths_make_a_batch_by_the_tasks_collate() -> None:
    task = Task(model=Bag, train=Sentences(), test=Sentences(), loss=nn.functional.mse_loss, collate=padded)
    inputs, targets = fetch(task.train, [0, 6, 3], CPU, task.collate)
    assert isinstance(inputs, Several)
    assert shapes(inputs) == "tokens (3, 7), lengths (3,)"
    assert targets.tolist() == [0.0, 11.0, 6.0]
    trainer = Trainer(task, 0)
    start = trainer.model.flat()
    local = LocalTraining(LocalOptimizer("sgd", 0.01))
    update = trainer.work(start, lambda _: trainer.samples(range(30)), local_steps=500, local=local)
    assert update.loss_after is not None
    assert update.loss_after < 0.02 * update.steps[0].loss
    model = build(task, 0)
    model.load(start + update.flat)
    assert evaluate(model.module, task, batch_size=4).loss == pytest.approx(update.loss_after, rel=1e-3)
    assert identity_of(task, build(task, 0), 0) == identity_of(task, build(task, 0), 0)


def test_without_a_collate_samples_of_different_lengths_are_named() -> None:
    task = Task(model=Bag, train=Sentences(), test=Sentences())
    with pytest.raises(InvalidInput, match="Sentences of 30 samples ended at sample 1: RuntimeError: stack expects"):
        fetch(task.train, [0, 1], CPU, task.collate)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_sparse_gradients_train_as_dense_ones(name: str) -> None:
    def after(model: Any) -> np.ndarray[Any, Any]:
        task = Task(model=model, train=Sentences(), test=Sentences(), loss=nn.functional.mse_loss, collate=padded)
        trainer = Trainer(task, 0)
        start = trainer.model.flat()
        local = LocalTraining(LocalOptimizer(name, 0.01))
        update = trainer.work(start, lambda i: trainer.samples(range(i, i + 9)), local_steps=4, local=local)
        return start + update.flat

    np.testing.assert_allclose(after(Bag), after(partial(Bag, sparse=False)), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "there are no inputs"),
        ((LEFT, RIGHT[:7]), r"the inputs have \[7, 40\] rows"),
        (
            {"left": LEFT, "right": "R"},
            "inputs 'right' must be one tensor or array with a row for each sample, not a str",
        ),
        ({"left": LEFT, "right": {"deep": RIGHT}}, "inputs 'right' must be one tensor .* not a dict"),
        ({"not a name": LEFT}, r"names of the model's arguments, not \['not a name'\]"),
        ((LEFT, torch.tensor(1.0)), "inputs 1 must be one tensor"),
    ],
)
def test_inputs_that_make_no_batch_are_named(given: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Task(model=TwoInputs, train=(given, Y), test=((LEFT, RIGHT), Y))


def test_a_batch_that_lost_samples_is_named() -> None:
    data = replace(task_of(Pairs(named=True)), collate=lambda samples: ({"left": LEFT[:3], "right": RIGHT[:3]}, Y[:3]))
    with pytest.raises(InvalidInput, match="a batch of 5 samples has 3 inputs and 3 targets"):
        fetch(data.train, range(5), CPU, data.collate)


def test_a_model_that_does_not_take_the_inputs_is_told_with_their_shapes() -> None:
    task = Task(model=lambda: nn.Linear(6, 2), train=((LEFT, RIGHT), Y), test=((LEFT, RIGHT), Y))
    with pytest.raises(InvalidInput, match=r"does not take samples of shape 0 \(10, 4\), 1 \(10, 2\) and targets"):
        trained(task)


def test_several_tensors_are_sliced_split_and_moved_like_one() -> None:
    both = inputs_of({"left": LEFT, "right": RIGHT})
    assert isinstance(both, Several)
    assert len(both) == 40
    assert [len(part) for part in both.chunk(3)] == [14, 14, 12]
    assert torch.equal(tensors(both[3:5])[1], RIGHT[3:5])
    assert both.to(CPU).names == ("left", "right")
