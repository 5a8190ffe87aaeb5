import random

import numpy as np
import pytest
import torch
from torch import nn

from hypergpu.common.errors import InvalidInput, ProtocolError
from hypergpu.tasks import FlatModel, Task, build


def _task(model: object) -> Task:
    data = (torch.randn(8, 3), torch.zeros(8, dtype=torch.int64))
    return Task(model=model, train=data, test=data)  # type: ignore[arg-type]  # bad factories are the point


def test_parameters_and_gradients_are_views_and_backward_fills_them() -> None:
    flat = FlatModel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    reference = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    reference.load_state_dict(flat.module.state_dict())
    x = torch.randn(5, 3)
    for model in (flat.module, reference):
        model(x).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    assert torch.equal(flat.gradients, expected)
    assert all(
        p.grad is not None and p.grad.untyped_storage().data_ptr() == flat.gradients.untyped_storage().data_ptr()
        for p in flat.module.parameters()
    )
    flat.parameters.sub_(flat.gradients, alpha=0.1)
    assert torch.allclose(next(flat.module.parameters()), next(reference.parameters()) - 0.1 * expected[:12].view(4, 3))


def test_load_and_flat_are_inverse_also_for_read_only_buffers() -> None:
    flat = FlatModel(nn.Linear(3, 2))
    values = np.arange(8, dtype=np.float32)
    values.flags.writeable = False
    flat.load(values)
    assert np.array_equal(flat.flat(), values)
    assert [t.name for t in flat.manifest.tensors] == ["weight", "bias"]
    with pytest.raises(ProtocolError, match="8"):
        flat.load(np.zeros(7, np.float32))


def test_running_statistics_travel_after_the_parameters() -> None:
    flat = FlatModel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    names = [t.name for t in flat.manifest.tensors]
    assert names[-2:] == ["1.running_mean", "1.running_var"]
    assert (flat.manifest.size, flat.parameter_count) == (32, 24)
    before = flat.state.clone()
    flat.module(torch.randn(10, 3) + 5)
    assert not torch.equal(flat.state, before)


def test_what_does_not_travel() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
            self.register_buffer("mask", torch.full((2, 2), float("-inf")))
            self.register_buffer("scratch", torch.zeros(2), persistent=False)
            self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    assert [t.name for t in FlatModel(Odd()).manifest.tensors] == ["used.weight", "used.bias"]


def test_tied_parameters_travel_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    assert FlatModel(Tied()).manifest.size == 15


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Linear(2, 2).double(), "float32"),
        (nn.ReLU(), "no trainable"),
        (nn.LazyLinear(2), "no shape yet"),
        (nn.LazyBatchNorm1d(), "no shape yet"),
    ],
)
def test_models_that_cannot_travel(module: nn.Module, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        FlatModel(module)


def test_build_is_seeded_and_leaves_the_global_generator_alone() -> None:
    task = _task(lambda: nn.Linear(3, 2))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build(task, seed).flat() for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_a_factory_that_fails_or_gives_something_else() -> None:
    with pytest.raises(InvalidInput, match="ZeroDivisionError"):
        build(_task(lambda: 1 / 0), 0)
    with pytest.raises(InvalidInput, match="int"):
        build(_task(lambda: 3), 0)


class Drawing(nn.Module):
    """KeyedRandom what it is made of by all three global generators: frozen, integer and not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.from_numpy(np.random.randn(3, 3).astype(np.float32)), requires_grad=False)
        self.register_buffer("order", torch.tensor(random.sample(range(100), 10)))
        self.register_buffer("mask", torch.from_numpy(np.random.rand(5).astype(np.float32)), persistent=False)


def test_what_does_not_travel_is_the_same_on_every_side() -> None:
    task = Task(model=Drawing, train=(torch.zeros(2, 4), torch.zeros(2)), test=(torch.zeros(2, 4), torch.zeros(2)))
    first = build(task, 5)
    random.seed(1)
    np.random.seed(1)
    second, other = build(task, 5), build(task, 6)
    assert set(first.at_home) == {"frozen", "order", "mask"}
    for name, tensor in first.at_home.items():
        assert torch.equal(tensor, second.at_home[name]), name
        assert not torch.equal(tensor, other.at_home[name]), name
    before = random.getstate(), np.random.rand(3), torch.rand(3)
    random.setstate(before[0])
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.rand(), float(torch.rand(()))
    np.random.seed(1)
    torch.manual_seed(1)
    build(task, 5)
    assert random.getstate() == before[0], "the global generators are left alone"
    assert (np.random.rand(), float(torch.rand(()))) == expected
