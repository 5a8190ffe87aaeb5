"""A trained model as plain PyTorch has it: the whole `state_dict`, with the names of the user's module.

Only a part of it travels (`hypergpu.tasks.flat`): frozen layers, integer buffers and the second name of a tied weight
do not, and a compiled module adds `_orig_mod` to its names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hypergpu.common.errors import InvalidInput
from hypergpu.common.tensors import Flat
from hypergpu.tasks.flat import FlatModel

_COMPILED = "_orig_mod"
"""Name of the module inside the wrapper of `torch.compile`."""


class SavedModel:
    """Converts the parameters of a run to the `state_dict` of its model, and back.

    Args:
        model: an instance for this object alone; its parameters are overwritten.

    Raises:
        InvalidInput: the `state_dict` holds a tensor that cannot be saved, such as a sparse one.
    """

    def __init__(self, model: FlatModel) -> None:
        self._model = model
        names = list(model.module.state_dict())
        plain = [_without_compiled(name) for name in names]
        self._plain = dict(zip(names, plain if len(set(plain)) == len(names) else names, strict=True))
        self.initial = self._state()
        """Initial `state_dict` of the task's model."""
        self.travelling = tuple(self._plain.get(spec.name, spec.name) for spec in model.manifest.tensors)
        """Names of the tensors that training changes, in the order of the manifest."""
        self.tied = self._tied()
        """Further names of tied weights, each with the name under which they travel."""

    def state(self, values: Flat) -> dict[str, Tensor]:
        """Return the whole `state_dict` for these parameters: copies on the CPU that share no memory."""
        self._model.load(values)
        return self._state()

    def kept_apart(self, state: Mapping[str, Tensor], values: Flat) -> dict[str, Tensor]:
        """Return the travelling tensors that `state` holds in another form, because of a module's own hooks."""
        return {
            name: torch.from_numpy(view.copy())
            for name, view in self._views(values).items()
            if not _holds(state.get(name), torch.from_numpy(view))
        }

    def values(self, state: Mapping[str, Tensor], apart: Mapping[str, Tensor]) -> Flat:
        """Return the parameters that `state` and `kept_apart` were made from.

        Raises:
            ValueError: a tensor is missing, or has another type or shape.
        """
        flat = self._model.flat()
        for name, view in self._views(flat).items():
            tensor = apart.get(name, state.get(name))
            if tensor is None:
                raise ValueError(f"{name!r} is missing")
            own = self.initial[name].dtype if name in self.initial else torch.float32
            if tensor.dtype not in (torch.float32, own) or tensor.shape != view.shape:
                found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise ValueError(f"{name!r} is {found}, expected {own} of shape {view.shape}")
            view[...] = tensor.float().numpy()
        return flat

    def _tied(self) -> dict[str, str]:
        """Return the names of the `state_dict` that stand for a tensor which travels under another name."""
        tensors = self._model.module.state_dict(keep_vars=True)
        travelling = {
            id(tensors[spec.name]): spec.name for spec in self._model.manifest.tensors if spec.name in tensors
        }
        return {
            self._plain[name]: self._plain[travelling[id(tensor)]]
            for name, tensor in tensors.items()
            if travelling.get(id(tensor), name) != name
        }

    def _views(self, values: Flat) -> dict[str, Flat]:
        return dict(zip(self.travelling, self._model.manifest.views(values).values(), strict=True))

    def _state(self) -> dict[str, Tensor]:
        saved = {}
        for name, value in self._model.module.state_dict().items():
            if not isinstance(value, Tensor):
                continue  # a module's extra state, which is a Python object
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                raise InvalidInput(f"{name!r} of the model cannot be saved: only dense tensors with data can")
            copy = value.detach().to("cpu", copy=True)
            saved[self._plain[name]] = copy.clone(memory_format=torch.contiguous_format)
        return saved


def _without_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _holds(saved: Tensor | None, tensor: Tensor) -> bool:
    return saved is not None and saved.dtype == tensor.dtype and torch.equal(saved, tensor)
