import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import NodeConfig, SystemConfig
from hypergpu.common.errors import InvalidInput, NonFiniteUpdate, OutOfMemory, ProtocolError, Unavailable, UnknownName
from hypergpu.common.local_optimizer import ADAMW
from hypergpu.common.step_times import StepTimes
from hypergpu.node.core.gpu import PRESETS, GPUSpecs
from hypergpu.node.optimizers import LocalTraining
from hypergpu.node.service import GPUNodeService
from hypergpu.node.trainer import Step, Timing, Trainer
from hypergpu.tasks import Task, build
from hypergpu.tasks.inputs import tensors

X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def small() -> Task:
    return Task(
        model=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        train=(X, Y),
        test=(X, Y),
        name="small",
    )


def service(specs: Any = "T4", **options: Any) -> GPUNodeService:
    options.setdefault("sleep", lambda seconds: None)
    return GPUNodeService("node_0", specs, SystemConfig(), task=small(), **options)


def loader(batch: int = 10) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=batch)


def test_the_calls_of_the_specification() -> None:
    config = SystemConfig()
    node = GPUNodeService("node_0", {"memory_gb": 16, "compute_capability": "7.5"}, config)
    parameters = build(node.worker.trainer.task, 1).module.state_dict()
    node.initialize(parameters, DataLoader(TensorDataset(torch.randn(64, 64), torch.arange(64) % 10), batch_size=16), 0)
    gradients, metrics = node.train_step()
    assert gradients.keys() == parameters.keys()
    assert all(gradients[name].shape == tuple(value.shape) for name, value in parameters.items())
    assert {"loss", "accuracy", "grad_norm", "step_time", "forward_time", "backward_time"} <= metrics.keys()
    assert metrics["samples"] == 16
    node.update_parameters({name: value + 1 for name, value in parameters.items()})
    node.update_batch_size(32)
    assert node.train_step().metrics["samples"] == 32
    assert node.health_check()["healthy"]
    assert node.get_metrics_summary()["training"]["total_steps"] == 2


def test_gradients_are_those_of_plain_torch_and_the_callers_to_keep() -> None:
    node = service()
    node.initialize(None, loader(), 0)
    reference = build(small(), 0).module
    loss = nn.functional.cross_entropy(reference(X[:10]), Y[:10])
    loss.backward()
    first, metrics = node.train_step()
    kept = {name: value.copy() for name, value in first.items()}
    node.train_step()
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        assert np.allclose(first[name], parameter.grad, atol=1e-7)
        assert np.array_equal(first[name], kept[name])
    assert metrics["loss"] == pytest.approx(loss.item())
    expected = math.sqrt(sum(float((p.grad**2).sum()) for p in reference.parameters() if p.grad is not None))
    assert metrics["grad_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["state_dict", "flat", "list", "module", "tensor"])
def test_parameters_in_every_form(form: str) -> None:
    node, other = service(), build(small(), 9)
    state = other.module.state_dict()
    forms: dict[str, Any] = {
        "state_dict": state,
        "flat": other.flat(),
        "list": list(state.values()),
        "module": other.module,
        "tensor": torch.from_numpy(other.flat()),
    }
    node.initialize(forms[form], loader(), 0)
    assert np.array_equal(node.worker.trainer.model.flat(), other.flat())


def test_bad_parameters_are_named_and_change_nothing() -> None:
    node = service()
    node.initialize(None, loader(), 0)
    before, state = node.worker.trainer.model.flat(), build(small(), 9).module.state_dict()
    with pytest.raises(ProtocolError, match=r"missing '0\.bias'"):
        node.update_parameters({k: v for k, v in state.items() if k != "0.bias"})
    with pytest.raises(ProtocolError, match="unexpected 'more'"):
        node.update_parameters({**state, "more": torch.zeros(1)})
    with pytest.raises(ProtocolError, match=r"expected \(8,\)"):
        node.update_parameters({**state, "0.bias": torch.zeros(3)})
    with pytest.raises(ProtocolError, match="shape"):
        node.update_parameters(np.zeros(3, np.float32))
    with pytest.raises(NonFiniteUpdate, match=r"2\.bias"):
        node.update_parameters({**state, "2.bias": torch.tensor([1.0, math.nan, 0.0])})
    assert np.array_equal(node.worker.trainer.model.flat(), before)


def test_shards_outside_the_range_and_names_that_are_none() -> None:
    for shard in (-1, 3, "0", 1.0):
        with pytest.raises(InvalidInput, match="outside the range"):
            service(shard_count=3).initialize(None, loader(), shard)  # type: ignore[arg-type]  # the point
    with pytest.raises(InvalidInput, match="name"):
        GPUNodeService("", "T4")
    with pytest.raises(UnknownName, match="did you mean"):
        GPUNodeService("n", "T5")
    with pytest.raises(InvalidInput, match="initialize"):
        service().train_step()


def test_own_shards_hold_all_samples_once_an_epoch() -> None:
    nodes = [service(shard_count=4) for _ in range(4)]
    seen: list[float] = []
    for index, node in enumerate(nodes):
        node.initialize(None, None, index)
        node.update_batch_size(10)
        assert node._batches is not None
        (inputs,) = tensors(node._batches.take(10)[0])
        seen += inputs[:, 0].tolist()
    assert sorted(seen) == pytest.approx(sorted(X[:, 0].tolist()))


def test_a_loader_that_ends_early_is_an_error_and_the_node_lives_on() -> None:
    def once() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield X[:4], Y[:4]

    node = service()
    node.initialize(None, once(), 0)
    node.train_step()
    with pytest.raises(InvalidInput, match="ended early, after 4 samples"):
        node.train_step()
    assert not node.health_check()["healthy"]
    node.initialize(None, loader(), 0)
    node.train_step()
    assert node.health_check()["healthy"]


def test_any_batch_size_is_cut_from_any_loader_across_epochs() -> None:
    node = service()
    node.initialize(None, loader(15), 0)  # 15, 15, 10
    for size in (7, 1, 40, 33):
        node.update_batch_size(size)
        assert node.train_step().metrics["samples"] == size


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "ended early"),
        (3, "int"),
        ([X[:4]], "Tensor"),
        ([(X[:4], Y[:3])], "as many targets"),
        ([(X[:4, :2], Y[:4])], "does not take samples of shape"),
        ([(X[:4], Y[:4] + 7)], "does not take samples"),
    ],
)
def test_loaders_that_do_not_hold(data: Any, match: str) -> None:
    node = service()
    with pytest.raises(InvalidInput, match=match):
        node.initialize(None, data, 0)
        node.train_step()


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_batch_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        service().update_batch_size(size)


def test_a_batch_beyond_memory_is_refused_or_accumulated_to_the_same_gradient() -> None:
    tiny = GPUSpecs("tiny", 3_000, 8.1)
    node, roomy = service(tiny), service()
    for each in (node, roomy):
        each.initialize(None, loader(40), 0)
    largest = node.worker.largest_batch
    assert largest is not None
    assert 1 <= largest < 40
    with pytest.raises(OutOfMemory, match=f"the largest that fits is {largest}") as caught:
        node.update_batch_size(40)
    assert caught.value.largest_batch == largest
    node.update_batch_size(40, accumulate=True)
    parts, whole = node.train_step().gradients, roomy.train_step().gradients
    assert all(np.allclose(parts[name], whole[name], atol=1e-6) for name in whole)


def test_nan_is_caught_with_its_step() -> None:
    node = service()
    poisoned = X.clone()
    poisoned[25] = math.nan
    node.initialize(None, DataLoader(TensorDataset(poisoned, Y), batch_size=10), 0)
    node.train_step()
    node.train_step()
    with pytest.raises(NonFiniteUpdate, match="at step 2") as caught:
        node.train_step()
    assert caught.value.step == 2


def fixed_times(trainer: Trainer, sample_bytes: float) -> StepTimes:
    """10 ms for a step, and 1 ms for each sample."""
    assert sample_bytes > 0
    return StepTimes(0.01, 0.001)


def no_spread() -> SystemConfig:
    return SystemConfig(node=NodeConfig(compute_spread=0.0))


def test_a_slow_card_waits_longer_and_a_throttled_one_longer_still() -> None:
    waits: dict[str, list[float]] = {}
    clock = ManualClock()
    for card in ("laptop-cpu", "T4"):
        waits[card] = []
        node = GPUNodeService(
            *("node_0", card, no_spread()),
            task=small(),
            sleep=waits[card].append,
            clock=clock,
            timer=ManualClock(),
            step_times=fixed_times,
        )
        node.initialize(None, loader(), 0)
        for _ in range(3):
            node.train_step()
    assert waits["laptop-cpu"] == pytest.approx([0.02 * 82.6 / 0.84] * 3)
    assert waits["T4"] == pytest.approx([0.02 * 82.6 / 8.1] * 3)
    assert node.worker.compute is not None
    node.worker.compute.straggle(clock(), 60.0, factor=20.0)
    node.train_step()
    assert waits["T4"][-1] == pytest.approx(20 * 0.02 * 82.6 / 8.1)


def test_a_card_waits_for_the_rest_of_its_time() -> None:
    waits: list[float] = []
    node = GPUNodeService("n", "RTX-4090", no_spread(), task=small(), sleep=waits.append, step_times=fixed_times)
    node.initialize(None, loader(), 0)
    step = Step(1.0, None, 1.0, 10, 0.0, 0.0, 0.0)
    for elapsed in (0.0, 0.015, 0.02, 0.03):
        node.worker.pace(step, elapsed)
    node.worker.pace(replace(step, optimizer_time=0.01), 0.0)  # on the fastest card
    assert waits == pytest.approx([0.02, 0.005, 0.03])


def test_a_machine_too_slow_for_a_card_is_told_once_with_figures() -> None:
    node = GPUNodeService("n", "RTX-4090", no_spread(), task=small(), sleep=lambda _: None, step_times=fixed_times)
    node.initialize(None, loader(), 0)
    step = Step(1.0, None, 1.0, 10, 0.0, 0.0, 0.0)
    with capture_logs() as logs:
        for _ in range(20):
            node.worker.pace(step, 0.02)
        assert logs == []
        for _ in range(20):
            node.worker.pace(step, 0.1)
    assert [(each["log_level"], each["gpu"], each["batch_size"]) for each in logs] == [("warning", "RTX-4090", 10)]
    assert logs[0]["simulated_seconds"] == pytest.approx(0.02)
    assert logs[0]["real_seconds"] == pytest.approx(0.036)  # one slow step of five


def test_nodes_of_one_machine_agree_whatever_each_would_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost = iter(range(len(PRESETS), 0, -1))  # the machine gets idle: each node would find it faster than the last
    seconds: dict[str, float] = {}
    for card in sorted(PRESETS, key=lambda name: -PRESETS[name].tflops):
        each = next(cost)
        monkeypatch.setattr(
            Trainer, "time_step", lambda _, x, y, each=each: Timing(each * (1 + len(x)), each * (1 + len(x)))
        )
        node = GPUNodeService(f"node of {card}", card, no_spread(), task=small(), sleep=lambda _: None)
        node.initialize(None, loader(), 0)
        assert node.worker.compute is not None
        seconds[card] = node.worker.compute.step_seconds(0, 32, 0.0) * PRESETS[card].tflops
    assert list(seconds.values()) == pytest.approx([33 * 7 * 82.6] * 7)


def test_the_machine_as_it_is_simulates_nothing() -> None:
    node = service("auto")
    node.initialize(None, loader(), 0)
    node.train_step()
    assert node.worker.compute is None
    assert not node.specs.simulated


def test_activations_are_measured_not_guessed() -> None:
    node = service()
    # Per sample: the input (6 floats), the first layer's output and ReLU's (8 each, one may be shared), the softmax
    # (3), the target, and reductions.
    measured = node.worker.trainer.measure_activations(X[:16], Y[:16])
    assert 4 * (6 + 8 + 3) <= measured <= 4 * (6 + 8 + 8 + 3 + 3) + 40


def test_batch_sizes_and_shards_may_be_numpys() -> None:
    node = service(shard_count=3)
    node.initialize(None, loader(), np.int64(2))  # type: ignore[arg-type]  # an index out of numpy
    node.update_batch_size(np.int32(5))  # type: ignore[arg-type]  # as above
    assert node.train_step().metrics["samples"] == 5


def test_a_batch_size_set_before_the_model_is_known_is_held_to_the_card() -> None:
    node = service(GPUSpecs("tiny", 3_000, 8.1))
    node.update_batch_size(1_000_000)
    with pytest.raises(OutOfMemory, match="the largest that fits"):
        node.initialize(None, loader(), 0)


def test_parameters_of_no_kind_and_opposite_infinities_are_told() -> None:
    node = service()
    node.initialize(None, loader(), 0)
    names = [tensor.name for tensor in node.worker.trainer.model.manifest.tensors]
    with pytest.raises(ProtocolError, match="expected a tensor of real numbers, not a str"):
        node.update_parameters(dict.fromkeys(names, "x"))
    flat = node.worker.trainer.model.flat()
    flat[:2] = math.inf, -math.inf
    with pytest.raises(NonFiniteUpdate, match=names[0]):
        node.update_parameters(flat)


def test_a_configuration_of_another_kind() -> None:
    with pytest.raises(InvalidInput, match="SystemConfig, not a dict"):
        GPUNodeService("n", "T4", {})  # type: ignore[arg-type]  # the point


def test_normalisation_over_the_batch_trains_on_a_simulated_card() -> None:
    normalised = Task(model=lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), train=(X, Y), test=(X, Y))
    node = GPUNodeService("n", "T4", task=normalised, sleep=lambda seconds: None)
    node.initialize(None, loader(), 0)
    assert math.isfinite(node.train_step().metrics["loss"] or math.nan)


def test_arrays_of_float64_are_given_as_the_model_is() -> None:
    x, y = X.double().numpy(), Y.numpy()
    node = GPUNodeService(
        "n", "auto", task=Task(model=lambda: nn.Linear(6, 3), train=(x, y), test=(x, y)), shard_count=1
    )
    for data in (None, [(x, y)]):
        node.initialize(None, data, 0)
        assert math.isfinite(node.train_step().metrics["loss"] or math.nan)


def test_a_loader_may_yield_several_inputs_by_name() -> None:
    node = service()
    node.initialize(None, [({"input": X[:15]}, Y[:15]), ({"input": X[15:]}, Y[15:])], 0)
    node.update_batch_size(20)
    assert node.train_step().metrics["samples"] == 20
    node.initialize(None, [({"input": X[:15]}, Y[:15]), (X[15:], Y[15:])], 0)
    with pytest.raises(InvalidInput, match="different inputs"):
        node.train_step()


class FlakyLoader:
    """Batches of two samples, numbered; raises what it is told to before it gives the batch."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.given = list(errors), 0

    def __iter__(self) -> "FlakyLoader":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        rows = slice(2 * self.given, 2 * self.given + 2)
        self.given += 1
        return X[rows], Y[rows]


def test_a_loader_that_is_out_of_order_for_a_moment_costs_waits_and_no_sample() -> None:
    waits: list[float] = []
    steady, flaky = service(), service(sleep=waits.append)
    node_loaders = ((steady, FlakyLoader()), (flaky, FlakyLoader(None, TimeoutError(), ConnectionResetError(), None)))
    gradients = []
    for node, source in node_loaders:
        node.initialize(None, source, 0)
        node.update_batch_size(6)
        gradients.append(node.train_step().gradients)
        assert source.given == 3
    assert waits[:2] == [0.2, 0.4]
    assert all(np.array_equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_loader_that_stays_out_of_order_is_unavailable_and_one_with_a_fault_is_told_at_once() -> None:
    waits: list[float] = []
    node = service(sleep=waits.append)
    node.initialize(None, FlakyLoader(*[TimeoutError("nfs") for _ in range(3)]), 0)
    with pytest.raises(Unavailable, match="failed after 0 samples: TimeoutError: nfs"):
        node.train_step()
    assert waits == [0.2, 0.4]
    assert node.train_step().metrics["samples"] == 2, "and goes on once it is back"
    node.initialize(None, FlakyLoader(KeyError("label")), 0)
    with pytest.raises(InvalidInput, match="KeyError: 'label'"):
        node.train_step()
    assert waits[:2] == [0.2, 0.4]
    assert len([wait for wait in waits if wait == 0.4]) == 1


def test_a_generator_that_broke_off_says_why() -> None:
    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield X[:2], Y[:2]
        raise TimeoutError("object store")

    node = service()
    node.initialize(None, batches(), 0)
    node.update_batch_size(4)
    with pytest.raises(InvalidInput, match="ended early, after 2 samples") as caught:
        node.train_step()
    assert str(caught.value.__cause__) == "object store"


def test_the_tasks_own_samples_are_tried_again_too() -> None:
    class Remote(torch.utils.data.Dataset[Any]):
        failures = 2

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            if self.failures > 0:
                self.failures -= 1
                raise ConnectionResetError("bucket")
            return X[index], Y[index]

    waits: list[float] = []
    data = Remote()
    data.failures = 0
    task = Task(model=small().model, train=data, test=(X, Y), name="remote")
    node = GPUNodeService("node_0", "T4", SystemConfig(), task=task, sleep=waits.append)
    node.initialize(None, None, 0)
    values = node.worker.trainer.model.flat()
    order = node.worker.shard("iid", 0, 1, 0, 1.0)
    waits.clear()
    data.failures = 2
    node.worker.work(values, order, 0, batch_size=4, local_steps=1, local=LocalTraining(ADAMW), key=(1, 0))
    assert waits[:2] == [0.2, 0.4]
    data.failures = 3
    with pytest.raises(Unavailable, match=r"ended at sample .*: ConnectionResetError: bucket"):
        node.worker.work(values, order, 0, batch_size=4, local_steps=1, local=LocalTraining(ADAMW), key=(2, 0))
