"""Access to samples by index, in a pair of tensors or a map-style Dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from hypergpu.common.errors import InvalidInput, Unavailable
from hypergpu.common.retry import is_transient

Array = Tensor | npt.NDArray[Any]
Data = tuple[Array, Array] | Dataset[Any]
"""`(inputs, targets)`, first dimension = samples; or a Dataset with `__len__` and `__getitem__` of such pairs.

float64, the default of numpy, is converted to float32 for the model.
"""

Indices = Sequence[int] | npt.NDArray[np.int64]


def count(data: Data) -> int:
    """Return the number of samples.

    Raises:
        InvalidInput: inputs and targets differ in number, or the data has neither form.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise InvalidInput(f"data must be a tuple (inputs, targets), not a tuple of {len(data)}")
        _require_arrays(data)
        if len(data[0]) != len(data[1]):
            raise InvalidInput(f"{len(data[0])} inputs and {len(data[1])} targets: their numbers must be equal")
        return len(data[0])
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InvalidInput(f"a {type(data).__name__} has no samples by index; give (inputs, targets) or a Dataset")
    return len(data)


def spread(length: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` indices, evenly spread over `length`, including the first and the last."""
    return np.unique(np.linspace(0, max(0, length - 1), min(most, length)).astype(np.int64))


def fetch(data: Data, indices: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of the samples at `indices`, on `device`.

    Raises:
        Unavailable: the storage or network of a Dataset is temporarily out of order.
        InvalidInput: a Dataset that ends early, raises, or does not yield (input, target) pairs of one shape.
    """
    if isinstance(data, tuple):
        index = torch.as_tensor(np.asarray(indices, np.int64))
        inputs, targets = (torch.as_tensor(part)[index] for part in data)
    else:
        batch = _collated(data, indices)
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise InvalidInput(f"a {type(data).__name__} must yield (input, target) pairs")
        _require_arrays(batch)
        inputs, targets = batch
    return as_float32(inputs).to(device, non_blocking=True), as_float32(targets).to(device, non_blocking=True)


def _collated(data: Dataset[Any], indices: Indices) -> Any:
    index = -1
    try:
        samples = []
        for index in map(int, indices):
            samples.append(data[index])
        return default_collate(samples)
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        kind = Unavailable if is_transient(error) else InvalidInput
        raise kind(f"a {type(data).__name__} of {count(data)} samples ended at sample {index}: {told}") from error


def as_float32(tensor: Tensor) -> Tensor:
    """Return a tensor, converted to float32 if it is float64."""
    return tensor.float() if tensor.dtype is torch.float64 else tensor


def _require_arrays(pair: Sequence[Any]) -> None:
    for what, part in zip(("inputs", "targets"), pair, strict=True):
        if not isinstance(part, (Tensor, np.ndarray)) or part.ndim == 0:
            raise InvalidInput(
                f"{what} must be one tensor or array with a row for each sample, not a {type(part).__name__}; "
                "if a model takes several, put them side by side into one and split it in `forward`"
            )


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
