"""Parameters in whatever form a user holds them, as the flat buffer of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hypergpu.common.errors import NonFiniteUpdate, ProtocolError
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.tasks import FlatModel

Parameters = Mapping[str, Any] | Sequence[Any] | Flat | torch.Tensor | nn.Module
"""By name (a `state_dict` will do), in the order of the model's manifest, as one flat buffer, or a Module like it."""


def flattened(parameters: Parameters, model: FlatModel) -> Flat:
    """The flat buffer of shape (manifest.size,) that `parameters` stand for.

    Raises:
        ProtocolError: missing, extra or wrongly shaped tensors, each named.
        NonFiniteUpdate: NaN or infinity; the tensor is named.
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
                    f"parameters are a mapping, a flat buffer or a list of {len(manifest.tensors)} tensors, "
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
    # A sum is not finite if any part is not, and costs a tenth of asking each.
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
        raise ProtocolError(f"a {type(value).__name__} where a tensor of real numbers belongs") from error
    if tensor.is_complex() or tensor.dtype is torch.bool:
        raise ProtocolError(f"a tensor of {tensor.dtype} where real numbers belong")
    array: Flat = tensor.to(torch.float32).numpy()
    return array
