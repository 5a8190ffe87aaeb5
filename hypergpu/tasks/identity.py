"""Computation of a task's identity, which every node compares with the coordinator's before it trains.

The comparison has a tolerance, because processors round differently: see `hypergpu.common.identity`. Resuming a run
compares the data exactly instead: see `hypergpu.tasks.fingerprint`.
"""

import hashlib
import re

import numpy as np
import torch
from torch import Tensor

from hypergpu.common.identity import Numbers, TaskIdentity
from hypergpu.tasks.base import Task
from hypergpu.tasks.flat import FlatModel
from hypergpu.tasks.inputs import Inputs, call, from_reduced, inputs_of, tensors
from hypergpu.tasks.samples import Array, Collate, Data, count, fetch, spread
from hypergpu.tasks.seeding import seeded

_SAMPLES = 64
"""Samples whose content is compared: different data differs in nearly all, and any data set reads them quickly."""
_VALUES = 512
"""Most numbers of one kind that are compared."""
_VALUES_OF_TENSOR = 16
_TENSORS = 500
"""Most tensors that do not travel and are compared."""
_FORWARD_SAMPLES = 8
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identity_of(task: Task, model: FlatModel, seed: int, *, is_local: bool = False) -> TaskIdentity:
    """Return the identity of a task and of its model as `build` made it, before anything is loaded into it.

    Args:
        task: result of `load_task`.
        model: made with `seed`, on any device.
        seed: seed of random augmentation and of the model.
        is_local: each node holds its own training data, of which the identity says nothing.
    """
    shared = task.test if is_local else task.train
    train_digest, train = ("", []) if is_local else _data("train", task.train, seed, task.collate)
    test_digest, test = _data("test", task.test, seed, task.collate)
    numbers = (*train, *test, *_at_home(model), *_behaviour(task, shared, model, seed))
    printed = _ADDRESS.sub("", repr(model.module)).encode()
    return TaskIdentity(
        0 if is_local else count(task.train),
        count(task.test),
        train_digest,
        test_digest,
        hashlib.sha256(printed).hexdigest(),
        numbers,
    )


def _data(name: str, data: Data, seed: int, collate: Collate | None) -> tuple[str, list[Numbers]]:
    """Return a digest of what must match exactly, and a sample of the numbers."""
    some = spread(count(data), _SAMPLES)
    if isinstance(data, tuple):
        inputs, targets = inputs_of(data[0]), torch.as_tensor(data[1])
        of_inputs = tensors(inputs[torch.from_numpy(some)])
    else:
        inputs, targets = _fetched(data, some, seed, collate)
        again, targets_again = _fetched(data, some, seed, collate)
        # Samples from a generator of their own differ each time; they cannot be compared.
        are_same = all(map(torch.equal, tensors(inputs), tensors(again)))
        of_inputs = tensors(inputs) if are_same else ()
        targets = targets if torch.equal(targets, targets_again) else targets[:0]
        known = getattr(data, "targets", None)
        if isinstance(known, (list, np.ndarray, Tensor)) and len(known) == count(data):
            targets = torch.as_tensor(np.asarray(known) if isinstance(known, list) else known)
    shapes = " ".join(str(tuple(part.shape[1:])) for part in tensors(inputs))
    kinds = " ".join(map(_kind, tensors(inputs)))
    digest = hashlib.sha256(f"{kinds} {_kind(targets)} {shapes} {tuple(targets.shape)}".encode())
    numbers = [Numbers(f"{name} inputs", _some(part)) for part in of_inputs]
    if targets.is_floating_point() or targets.is_complex():
        numbers.append(Numbers(f"{name} targets", _some(targets)))
    else:
        digest.update(targets.detach().cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest(), numbers


def _fetched(
    data: Data, some: "np.ndarray[tuple[int], np.dtype[np.int64]]", seed: int, collate: Collate | None
) -> tuple[Inputs, Tensor]:
    with seeded(seed):
        return fetch(data, some, torch.device("cpu"), collate)


def _at_home(model: FlatModel) -> list[Numbers]:
    names = list(model.at_home)
    return [
        Numbers(f"values of {name!r}, which does not travel", _some(model.at_home[name], _VALUES_OF_TENSOR))
        for name in (names[at] for at in spread(len(names), _TENSORS))
    ]


def _behaviour(task: Task, data: Data, model: FlatModel, seed: int) -> list[Numbers]:
    """Return outputs, loss and gradients of the untrained model; nothing if it does not give the same ones twice.

    A different architecture of the same shapes shows in the outputs, a different loss in the loss and the gradients.
    """
    module = model.module
    was_training = module.training
    module.eval()
    try:
        first, second = (_pass(task, data, model, seed, drawn) for drawn in (seed, seed + 1))
    except Exception:  # the first step will report it better
        return []
    finally:
        module.train(was_training)
        model.gradients.zero_()
        model.attach_gradients()
        model.put_buffers_back()
    # Random samples, or a model that is random in evaluation, differ on every machine.
    return first if first == second else []


def _pass(task: Task, data: Data, model: FlatModel, seed: int, drawn: int) -> list[Numbers]:
    """Run a forward and backward pass; `seed` seeds the samples, `drawn` the model."""
    device = model.values.device
    with seeded(seed, device):
        inputs, targets = fetch(data, spread(count(data), _FORWARD_SAMPLES), device, task.collate)
    model.gradients.zero_()
    with seeded(drawn, device):
        outputs = from_reduced(call(model.module, inputs))
        loss = task.loss(outputs, targets)
        torch.autograd.backward(loss)
    model.collect_gradients()
    found = [
        Numbers("loss of the untrained model", _some(loss)),
        Numbers("gradients of the untrained model", _some(model.gradients)),
    ]
    if isinstance(outputs, Tensor):
        found.append(Numbers("outputs of the untrained model", _some(outputs)))
    return found


def _kind(tensor: Tensor) -> str:
    """Return the kind of numbers; integers of any width are the same."""
    return str(tensor.dtype) if tensor.is_floating_point() or tensor.is_complex() else "whole numbers"


def _some(values: Array, most: int = _VALUES) -> tuple[float, ...]:
    flat = torch.as_tensor(values).detach().reshape(-1)
    chosen = flat[torch.from_numpy(spread(len(flat), most)).to(flat.device)].cpu()
    if chosen.is_complex():
        chosen = torch.view_as_real(chosen).reshape(-1)
    return tuple(chosen.to(torch.float64).tolist())
