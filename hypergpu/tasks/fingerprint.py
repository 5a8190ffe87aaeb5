"""Exact fingerprint of a task's data, compared when a run resumes: it must be the same to the last bit.

Nodes of other machines are compared within a tolerance instead: see `hypergpu.tasks.identity`.
"""

import hashlib

import torch
from torch import Tensor

from hypergpu.tasks.base import Task
from hypergpu.tasks.samples import Array, Data, count, fetch, spread

_SAMPLES = 64
"""Samples whose content is read: enough to detect different data, few enough for any data set."""
_DIGITS = 16


def fingerprint(task: Task) -> str:
    """Return a fingerprint of a task's training and held-out data, in hexadecimal digits.

    For tensors and arrays it covers all targets and the inputs of some samples; for a Dataset, which may augment its
    inputs at random, the targets of some samples and the shape of their inputs.
    """
    digest = hashlib.sha256()
    for data in (task.train, task.test):
        for part in _parts(data):
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]


def _parts(data: Data) -> tuple[Tensor, ...]:
    samples = count(data)
    some = spread(samples, _SAMPLES)
    if isinstance(data, tuple):
        inputs, targets = (_tensor(part) for part in data)
        return torch.tensor(samples), inputs[torch.from_numpy(some)], targets
    inputs, targets = fetch(data, some, torch.device("cpu"))
    return torch.tensor([samples, *inputs.shape]), targets


def _tensor(array: Array) -> Tensor:
    return torch.as_tensor(array).detach().cpu()
