"""Conversion of parameters in any form to the flat buffer of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hypergpu.common.errors import NonFiniteUpdate, ProtocolError
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.tasks import FlatModel

Parameters = Mapping[str, Any] | Sequence[Any] | Flat | torch.Tensor | nn.Module
"""A mapping by name (such as a `state_dict`), a list in manifest order, one flat buffer, or a Module of this shape."""


def flattened(parameters: Parameters, model: FlatModel) -> Flat:
    """Return parameters as one flat buffer of shape (manifest.size,).

    Raises:
        ProtocolError: missing, unexpected or misshaped tensors; the message names them.
        NonFiniteUpdate: NaN or infinity; the message names the tensor.
    """
    manifest = model.manifest
    if isinstance(parameters, nn.Module):
        parameters = parameters.state_dict()
    if isinstance(parameters, (torch.Tensor, np.ndarray)):
        flat = np.ascontiguousarray(_array(parameters))
        views = manifest.views(flat)
    else:
        if not isinstance(parameters, Mapping):
            if not isinstance(parameters, Sequence) or len(parameters) != len(manifest.tensors):
                raise ProtocolError(
                    f"parameters must be a mapping, a flat buffer or a list of {len(manifest.tensors)} tensors, "
                    f"not a {type(parameters).__name__}"
                )
            parameters = dict(zip((t.name for t in manifest.tensors), parameters, strict=True))
        # A state_dict also holds what does not travel, such as BatchNorm's step counts.
        staying = model.module.state_dict().keys() - {t.name for t in manifest.tensors}
        views = {name: _array(value) for name, value in parameters.items() if name not in staying}
        given = {name: TensorSpec(name, tuple(array.shape)) for name, array in views.items()}
        ordered = [given.pop(t.name) for t in manifest.tensors if t.name in given]
        manifest.require_same(Manifest((*ordered, *given.values())))
        flat = np.concatenate([views[t.name].ravel() for t in manifest.tensors])
    # The sum is finite only if all parts are, and costs a tenth of checking each.
    with np.errstate(invalid="ignore"):  # infinity less infinity
        total = np.add.reduce(flat, dtype=np.float64)
    if not np.isfinite(total):
        odd = [name for name, view in views.items() if not np.isfinite(view).all()]
        raise NonFiniteUpdate(f"NaN or infinity in the parameters: {', '.join(odd[:5])}")
    return flat


def _array(value: Any) -> Flat:
    try:
        tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"expected a tensor of real numbers, not a {type(value).__name__}") from error
    if tensor.is_complex() or tensor.dtype is torch.bool:
        raise ProtocolError(f"expected a tensor of real numbers, not of {tensor.dtype}")
    array: Flat = tensor.to(torch.float32).numpy()
    return array
