"""A short text that differs where the data of a task differs."""

import hashlib

import torch
from torch import Tensor

from hypergpu.tasks.base import Task
from hypergpu.tasks.samples import Array, Data, count, fetch, spread

_SAMPLES = 64
"""Samples of which the content is read: enough to notice other data, few enough for any data set."""
_DIGITS = 16


def fingerprint(task: Task) -> str:
    """Return a fingerprint of a task's training and held-out data, in hexadecimal digits.

    Of tensors and arrays it covers every target, and the inputs of some samples. Of a Dataset, which may augment its
    inputs at random, it covers the targets of some samples, and the shape of their inputs.
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
