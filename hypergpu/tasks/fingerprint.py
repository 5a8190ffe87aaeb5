"""Exact fingerprint of a task's data, compared when a run resumes: it must be the same to the last bit.

Nodes of other machines are compared within a tolerance instead: see `hypergpu.tasks.identity`.
"""

import hashlib

import torch
from torch import Tensor

from hypergpu.tasks.base import Task
from hypergpu.tasks.inputs import inputs_of, tensors
from hypergpu.tasks.samples import Collate, Data, count, fetch, spread

_SAMPLES = 64
"""Samples whose content is read: enough to detect different data, few enough for any data set."""
_DIGITS = 16


def fingerprint(task: Task, *, is_local: bool = False) -> str:
    """Return a fingerprint of a task's training and held-out data, in hexadecimal digits.

    Where each node holds its own training data (`is_local`), it covers the held-out data alone.

    For tensors and arrays it covers all targets and the inputs of some samples; for a Dataset, which may augment its
    inputs at random, the targets of some samples and the shape of their inputs.
    """
    digest = hashlib.sha256()
    for data in (task.test,) if is_local else (task.train, task.test):
        for part in _parts(data, task.collate):
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]


def _parts(data: Data, collate: Collate | None) -> tuple[Tensor, ...]:
    samples = count(data)
    some = spread(samples, _SAMPLES)
    if isinstance(data, tuple):
        read = (*tensors(inputs_of(data[0])[torch.from_numpy(some)]), torch.as_tensor(data[1]))
        return torch.tensor(samples), *(part.detach().cpu() for part in read)
    inputs, targets = fetch(data, some, torch.device("cpu"), collate)
    return torch.tensor([samples, *(size for part in tensors(inputs) for size in part.shape)]), targets
