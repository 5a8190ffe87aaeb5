"""Inputs of a model: one tensor, or several by position or by name, each with a row for each sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hypergpu.common.errors import InvalidInput


def as_float32(tensor: Tensor) -> Tensor:
    """Return a tensor, converted to float32 if it is float64."""
    return tensor.float() if tensor.dtype is torch.float64 else tensor


def from_reduced(outputs: Any) -> Any:
    """Return outputs as float32 if they are bfloat16 or float16, because losses are computed in float32."""
    reduced = isinstance(outputs, Tensor) and outputs.dtype in (torch.bfloat16, torch.float16)
    return outputs.float() if reduced else outputs


@dataclass(frozen=True, slots=True)
class Several:
    """Several tensors of the same samples; it is sliced, split and moved like one."""

    parts: tuple[Tensor, ...]
    names: tuple[str, ...] = ()
    """Names of the model's arguments; empty if the tensors are given by position."""

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Any) -> "Several":
        return self.map(lambda part: part[rows])

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Several":
        """Return the tensors on a device."""
        return self.map(lambda part: part.to(device, non_blocking=non_blocking))

    def chunk(self, count: int) -> "list[Several]":
        """Split the samples into at most `count` parts."""
        pieces = [part.chunk(count) for part in self.parts]
        return [Several(each, self.names) for each in zip(*pieces, strict=True)]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Several":
        """Return the tensors, each changed by a function."""
        return Several(tuple(map(change, self.parts)), self.names)


Inputs = Tensor | Several


def inputs_of(given: Any) -> Inputs:
    """Return inputs as tensors that share their memory.

    Raises:
        InvalidInput: they are no tensor or array, no mapping or sequence of such, or differ in the number of samples.
    """
    if isinstance(given, Several):
        return given
    if isinstance(given, Mapping):
        names = tuple(given)
        if not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise InvalidInput(f"inputs by name need the names of the model's arguments, not {list(names)[:5]}")
        return _several([given[name] for name in names], names)
    if isinstance(given, (tuple, list)):
        return _several(given, ())
    return tensor_of(given, "inputs")


def _several(parts: Sequence[Any], names: tuple[str, ...]) -> Several:
    if not parts:
        raise InvalidInput("there are no inputs: give at least one tensor")
    labels = [f"inputs {name!r}" for name in names or range(len(parts))]
    found = [tensor_of(part, label) for part, label in zip(parts, labels, strict=True)]
    lengths = {len(part) for part in found}
    if len(lengths) > 1:
        raise InvalidInput(f"the inputs have {sorted(lengths)} rows: each needs a row for each sample")
    return Several(tuple(found), names)


def tensor_of(given: Any, what: str) -> Tensor:
    """Return a tensor or array as a tensor that shares its memory.

    Raises:
        InvalidInput: it is neither, or has no rows.
    """
    if not isinstance(given, (Tensor, np.ndarray)) or given.ndim == 0:
        raise InvalidInput(
            f"{what} must be one tensor or array with a row for each sample, not a {type(given).__name__}; a model "
            "that takes several gets them as a tuple, or as a mapping by the names of its arguments"
        )
    return torch.as_tensor(given)


def tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the tensors of inputs."""
    return inputs.parts if isinstance(inputs, Several) else (inputs,)


def model_inputs(inputs: Inputs) -> Inputs:
    """Return inputs as the model takes them: float64, the default of numpy, is converted to float32."""
    return inputs.map(as_float32) if isinstance(inputs, Several) else as_float32(inputs)


def shapes(inputs: Inputs) -> str:
    """Return the shapes of inputs, for people."""
    if isinstance(inputs, Several):
        keys = inputs.names or tuple(map(str, range(len(inputs.parts))))
        return ", ".join(f"{key} {tuple(part.shape)}" for key, part in zip(keys, inputs.parts, strict=True))
    return str(tuple(inputs.shape))


def joined(batches: Sequence[Inputs]) -> Inputs:
    """Return batches as one.

    Raises:
        InvalidInput: they are not of the same form.
    """
    first = batches[0]
    if not isinstance(first, Several):
        return torch.cat([_plain(batch) for batch in batches])
    if any(not isinstance(batch, Several) or batch.names != first.names for batch in batches):
        raise InvalidInput("the batches have different inputs")
    columns = zip(*(tensors(batch) for batch in batches), strict=True)
    return Several(tuple(torch.cat(column) for column in columns), first.names)


def _plain(batch: Inputs) -> Tensor:
    if isinstance(batch, Several):
        raise InvalidInput("the batches have different inputs")
    return batch


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Return the model's outputs for inputs, given as its arguments."""
    if not isinstance(inputs, Several):
        return model(inputs)
    if inputs.names:
        return model(**dict(zip(inputs.names, inputs.parts, strict=True)))
    return model(*inputs.parts)
