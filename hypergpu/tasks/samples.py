"""Access to samples by index, in a pair of tensors or a map-style Dataset."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from hypergpu.common.errors import InvalidInput, Unavailable
from hypergpu.common.retry import is_transient
from hypergpu.tasks.inputs import Inputs, Several, as_float32, inputs_of, model_inputs, tensor_of

Array = Tensor | npt.NDArray[Any]
Data = tuple[Array | tuple[Array, ...] | Mapping[str, Array] | Several, Array] | Dataset[Any]
"""`(inputs, targets)`, first dimension = samples; or a Dataset with `__len__` and `__getitem__` of such pairs.

Inputs are one tensor, a tuple of the model's arguments, or a mapping by their names. float64, the default of numpy, is
converted to float32 for the model.
"""
Collate = Callable[[list[Any]], Any]
"""Samples of a Dataset -> (inputs, targets) of a batch, as a `collate_fn` of a DataLoader."""

Indices = Sequence[int] | npt.NDArray[np.int64]


def count(data: Data) -> int:
    """Return the number of samples.

    Raises:
        InvalidInput: inputs and targets differ in number, or the data has neither form.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise InvalidInput(f"data must be a tuple (inputs, targets), not a tuple of {len(data)}")
        inputs, targets = inputs_of(data[0]), tensor_of(data[1], "targets")
        if len(inputs) != len(targets):
            raise InvalidInput(f"{len(inputs)} inputs and {len(targets)} targets: their numbers must be equal")
        return len(targets)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InvalidInput(f"a {type(data).__name__} has no samples by index; give (inputs, targets) or a Dataset")
    return len(data)


def part(data: Data, indices: npt.NDArray[np.int64]) -> Data:
    """Return the samples at `indices` as data of their own."""
    if not isinstance(data, tuple):
        return Subset(data, indices.tolist())
    index = torch.from_numpy(indices)
    return inputs_of(data[0])[index], tensor_of(data[1], "targets")[index]


def spread(length: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` indices, evenly spread over `length`, including the first and the last."""
    return np.unique(np.linspace(0, max(0, length - 1), min(most, length)).astype(np.int64))


def fetch(data: Data, indices: Indices, device: torch.device, collate: Collate | None = None) -> tuple[Inputs, Tensor]:
    """Return the inputs and targets of the samples at `indices`, on `device`.

    Args:
        data: tensors or a Dataset.
        indices: of the samples.
        device: where to put them.
        collate: makes a batch of the samples of a Dataset; by default they are stacked.

    Raises:
        Unavailable: the storage or network of a Dataset is temporarily out of order.
        InvalidInput: a Dataset that ends early, raises, or does not yield (input, target) pairs that make a batch.
    """
    if isinstance(data, tuple):
        index = torch.as_tensor(np.asarray(indices, np.int64))
        inputs, targets = inputs_of(data[0])[index], tensor_of(data[1], "targets")[index]
    else:
        inputs, targets = _batch(data, _collated(data, indices, collate or default_collate), len(indices))
    inputs, targets = model_inputs(inputs), as_float32(targets)
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _batch(data: Dataset[Any], batch: Any, samples: int) -> tuple[Inputs, Tensor]:
    if not isinstance(batch, (list, tuple)) or len(batch) != 2:
        raise InvalidInput(f"a {type(data).__name__} must yield (input, target) pairs")
    inputs, targets = inputs_of(batch[0]), tensor_of(batch[1], "targets")
    if not len(inputs) == len(targets) == samples:
        raise InvalidInput(f"a batch of {samples} samples has {len(inputs)} inputs and {len(targets)} targets")
    return inputs, targets


def _collated(data: Dataset[Any], indices: Indices, collate: Collate) -> Any:
    index = -1
    try:
        samples = []
        for index in map(int, indices):
            samples.append(data[index])
        return collate(samples)
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        kind = Unavailable if is_transient(error) else InvalidInput
        raise kind(f"a {type(data).__name__} of {count(data)} samples ended at sample {index}: {told}") from error


def labels(data: Data) -> npt.NDArray[np.int64]:
    """Return the class of each sample, shape (samples,), for a Dirichlet partition.

    Raises:
        InvalidInput: the targets are not one integer per sample.
    """
    if isinstance(data, tuple):
        targets: Any = data[1]
    else:
        known = getattr(data, "targets", None)
        targets = known if known is not None else [data[i][1] for i in range(count(data))]
    array = np.asarray(targets)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise InvalidInput(
            f"a Dirichlet partition needs one class per sample; the targets are {array.dtype} of shape {array.shape}. "
            "Use partition: iid"
        )
    return array.astype(np.int64)
