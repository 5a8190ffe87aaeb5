"""A model whose parameters and gradients are views into two flat buffers: nothing is copied per tensor.

The flat buffer holds, in this order,
  1. the trainable parameters, in the order of `named_parameters()`, and
  2. the state: floating-point buffers that training changes, such as BatchNorm's running statistics.
An update has the same layout. Its first `parameter_count` floats are gradients (one local step) or
changes (more); its state part is always a change, to be averaged and added, never fed to an optimiser.
"""

from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hypergpu.common.errors import InvalidInput, ProtocolError
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.tasks.base import Task
from hypergpu.tasks.seeding import seeded


class Place:
    """A buffer of a module, by its owner and name there: code may put another tensor into its place."""

    def __init__(self, owner: nn.Module, key: str, tensor: Tensor) -> None:
        self._owner, self._key, self.tensor = owner, key, tensor
        self._initial: Tensor | None = None
        self._version = tensor._version

    @torch.no_grad()
    def collect(self) -> None:
        """Take over the values of the tensor that is in the place now, and put ours back."""
        found = self._owner._buffers.get(self._key)
        if found is self.tensor:
            return
        if found is None or found.shape != self.tensor.shape or found.dtype != self.tensor.dtype:
            now = "gone" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise InvalidInput(
                f"buffer {self._key!r} of {type(self._owner).__name__} was {self.tensor.dtype} of shape "
                f"{tuple(self.tensor.shape)} and is {now}; only its values may change while it is trained"
            )
        self.tensor.copy_(found)
        self.put_back()

    def put_back(self) -> None:
        """Put our tensor back into the place."""
        self._owner._buffers[self._key] = self.tensor

    @torch.no_grad()
    def reset(self) -> None:
        """Give our tensor the values that it had at the first call."""
        if self._initial is None:
            self._initial = self.tensor.clone()
        elif self.tensor._version != self._version:
            self.tensor.copy_(self._initial)
        self._version = self.tensor._version


class FlatModel:
    """`module` with its parameters, state and gradients laid into flat float32 buffers.

    Frozen parameters, integer buffers and constant buffers (with infinities in them, such as attention
    masks) stay where they are; they do not travel, since every side builds the same model.

    Raises:
        InvalidInput: a trainable parameter that is not float32 or has no shape yet, or none at all.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if is_lazy(tensor):
                raise InvalidInput(f"{name!r} has no shape yet: give lazy layers a sample in the model's factory")
        self.module = module.to(device)
        trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        state = list(_changing_buffers(module))
        if not trainable:
            raise InvalidInput(f"{type(module).__name__} has no trainable parameters")
        for name, tensor in [*trainable, *state]:
            if tensor.dtype != torch.float32:
                raise InvalidInput(f"{name!r} is {tensor.dtype}; models travel as float32: call .float() on the model")
        self.manifest = Manifest(tuple(TensorSpec(name, tuple(t.shape)) for name, t in [*trainable, *state]))
        self.parameter_count = sum(p.numel() for _, p in trainable)
        """Floats of the flat buffer that an optimiser may touch; the rest is state."""
        self.values = torch.empty(self.manifest.size, device=device)
        """Parameters and state, shape (manifest.size,)."""
        self.gradients = torch.zeros(self.parameter_count, device=device)
        """Gradients, shape (parameter_count,); `backward()` adds to them."""
        start = 0
        for _, tensor in [*trainable, *state]:
            view = self.values[start : start + tensor.numel()].view(tensor.shape)
            view.copy_(tensor.detach())
            tensor.data = view
            start += tensor.numel()
        self.trainable = tuple(p for _, p in trainable)
        self._gradient_views = tuple(self._views_of_gradients())
        travelling = {id(tensor) for _, tensor in [*trainable, *state]}
        self.at_home: Mapping[str, Tensor] = {
            name: tensor
            for name, tensor in chain(module.named_parameters(), module.named_buffers())
            if id(tensor) not in travelling
        }
        """Tensors that do not travel, by name: frozen parameters, and buffers that are not state."""
        places = [Place(owner, key, buffer) for owner in module.modules() for key, buffer in _own_buffers(owner)]
        self._state_places = [place for place in places if id(place.tensor) in travelling]
        self._home_places = [place for place in places if id(place.tensor) not in travelling]
        self.put_buffers_back()
        self.attach_gradients()

    def attach_gradients(self) -> None:
        """Let `backward()` add to `gradients`, where someone has set the parameters' own `grad` to something else."""
        for parameter, view in zip(self.trainable, self._gradient_views, strict=True):
            parameter.grad = view

    def collect_gradients(self) -> None:
        """Bring gradients that the model's own code has put elsewhere, as `zero_grad()` does, back into `gradients`."""
        for parameter, view in zip(self.trainable, self._gradient_views, strict=True):
            gradient = parameter.grad
            if gradient is not view:
                view.zero_() if gradient is None else view.copy_(gradient.detach())
                parameter.grad = view

    def collect_state(self) -> None:
        """Bring state that the model's own code has put into new tensors back into `values`.

        Raises:
            InvalidInput: a buffer that is gone, or has another shape or type.
        """
        for place in self._state_places:
            place.collect()

    def put_buffers_back(self) -> None:
        """Give the buffers that do not travel the values that they were made with, and each its own tensor.

        Work is then the same whoever does it, whatever that node did before.
        """
        for place in self._state_places:
            place.put_back()
        for place in self._home_places:
            place.put_back()
            place.reset()

    @property
    def parameters(self) -> Tensor:
        """The trainable part of `values`, a view of shape (parameter_count,)."""
        return self.values[: self.parameter_count]

    @property
    def state(self) -> Tensor:
        """The rest of `values`: running statistics, a view."""
        return self.values[self.parameter_count :]

    def _views_of_gradients(self) -> Iterator[Tensor]:
        start = 0
        for parameter in self.trainable:
            yield self.gradients[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()

    def load(self, flat: Flat) -> None:
        """Set parameters and state; other buffers get the values that they were made with.

        Raises:
            ProtocolError: `flat` is not of shape (manifest.size,).
        """
        if flat.shape != (self.manifest.size,):
            raise ProtocolError(f"a flat buffer of shape {flat.shape} where ({self.manifest.size},) belongs")
        self.put_buffers_back()
        source = torch.from_numpy(flat if flat.flags.writeable else flat.copy())
        self.values.copy_(source)

    def flat(self) -> Flat:
        """A copy of parameters and state, shape (manifest.size,)."""
        return self.values.detach().to("cpu", copy=True).numpy()


def build(task: Task, seed: int, device: torch.device | str = "cpu") -> FlatModel:
    """A fresh model of `task`: the same seed gives the same parameters, and the global generators are left alone.

    Raises:
        InvalidInput: the model's factory fails, or gives something that is not a Module with float32 parameters.
    """
    with seeded(seed):
        try:
            module = task.model()
        except Exception as error:
            raise InvalidInput(f"the model of task {task.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"the model of task {task.name!r} is a {type(module).__name__}, not a torch.nn.Module")
    return FlatModel(module, device)


def _own_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((key, buffer) for key, buffer in module._buffers.items() if buffer is not None)


def _changing_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    persistent = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in persistent and buffer.is_floating_point() and bool(torch.isfinite(buffer).all()):
            yield name, buffer
