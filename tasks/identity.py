"""Computes the identity of a task: what all sides of a run compare before they train together."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from common.identity import Numbers, TaskIdentity
from tasks.base import Task
from tasks.flat import FlatModel
from tasks.samples import Array, Data, count, fetch
from tasks.seeding import seeded

_SAMPLES = 64
"""Samples whose content is looked at: other data differs in nearly all, and any data set has these read quickly."""
_VALUES = 512
"""Numbers of one thing that are compared."""
_VALUES_OF_TENSOR = 16
_TENSORS = 500
"""Tensors that stay at home and are compared; of more, some."""
_FORWARD_SAMPLES = 8


def identity_of(task: Task, model: FlatModel, seed: int) -> TaskIdentity:
    """Return the identity of a task and of its model as `build` made it, before anything is loaded into it.

    Args:
        task: as `load_task` gives it.
        model: made with `seed`, on any device.
        seed: what random augmentation of samples, and the model, draw by.
    """
    train_digest, train = _data("train", task.train, seed)
    test_digest, test = _data("test", task.test, seed)
    numbers = (*train, *test, *_at_home(model), *_outputs(task, model, seed))
    return TaskIdentity(count(task.train), count(task.test), train_digest, test_digest, numbers)


def _data(name: str, data: Data, seed: int) -> tuple[str, list[Numbers]]:
    """Digest of what is exact, and some of the numbers."""
    some = _spread(count(data), _SAMPLES)
    if isinstance(data, tuple):
        inputs, targets = (torch.as_tensor(part) for part in data)
        of_inputs: Tensor | None = inputs[torch.from_numpy(some)]
    else:
        inputs, targets = _fetched(data, some, seed)
        again, _ = _fetched(data, some, seed)
        # Augmentation that draws by a generator of its own is another one every time.
        of_inputs = inputs if torch.equal(inputs, again) else None
        known = getattr(data, "targets", None)
        if isinstance(known, (list, np.ndarray, Tensor)) and len(known) == count(data):
            targets = torch.as_tensor(np.asarray(known) if isinstance(known, list) else known)
    digest = hashlib.sha256(f"{inputs.dtype} {tuple(inputs.shape[1:])} {targets.dtype} {tuple(targets.shape)}".encode())
    numbers = [Numbers(f"{name} inputs", _some(of_inputs))] if of_inputs is not None else []
    if targets.is_floating_point() or targets.is_complex():
        numbers.append(Numbers(f"{name} targets", _some(targets)))
    else:
        digest.update(targets.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest(), numbers


def _fetched(data: Data, some: "np.ndarray[tuple[int], np.dtype[np.int64]]", seed: int) -> tuple[Tensor, Tensor]:
    with seeded(seed):
        return fetch(data, some, torch.device("cpu"))


def _at_home(model: FlatModel) -> list[Numbers]:
    names = list(model.at_home)
    return [
        Numbers(f"values of {name!r}, which does not travel", _some(model.at_home[name], _VALUES_OF_TENSOR))
        for name in (names[at] for at in _spread(len(names), _TENSORS))
    ]


@torch.no_grad()
def _outputs(task: Task, model: FlatModel, seed: int) -> list[Numbers]:
    """Outputs and loss of the untrained model: another architecture of the same shapes, or another loss, shows here."""
    module, device = model.module, model.values.device
    was_training = module.training
    module.eval()
    try:
        with seeded(seed, device):
            inputs, targets = fetch(task.train, _spread(count(task.train), _FORWARD_SAMPLES), device)
        with seeded(seed, device):
            outputs = module(inputs)
            loss = task.loss(outputs, targets)
    except Exception:  # the first step says better what is wrong
        return []
    finally:
        module.train(was_training)
        model.put_buffers_back()
    found = [Numbers("loss of the untrained model", _some(torch.as_tensor(loss)))]
    if isinstance(outputs, Tensor):
        found.append(Numbers("outputs of the untrained model", _some(outputs)))
    return found


def _spread(length: int, most: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return at most so many places, evenly spread over `length`, the first and the last among them."""
    return np.unique(np.linspace(0, max(0, length - 1), min(most, length)).astype(np.int64))


def _some(values: Array, most: int = _VALUES) -> tuple[float, ...]:
    flat = torch.as_tensor(values).detach().reshape(-1)
    chosen = flat[torch.from_numpy(_spread(len(flat), most)).to(flat.device)].cpu()
    if chosen.is_complex():
        chosen = torch.view_as_real(chosen).reshape(-1)
    return tuple(chosen.to(torch.float64).tolist())
