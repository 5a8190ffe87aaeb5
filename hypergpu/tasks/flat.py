"""Models whose parameters and gradients are views of two flat buffers, so that nothing is copied per tensor.

The flat buffer holds, in this order,
  1. the trainable parameters, in the order of `named_parameters()`, and
  2. the state: floating-point buffers that training changes, such as BatchNorm's running statistics.
An update has the same layout. Its first `parameter_count` floats are gradients (one local step) or
changes (more); its state part is always a change, which is averaged and added without an optimizer.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hypergpu.common.errors import InvalidInput, ProtocolError
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.tasks.base import Task
from hypergpu.tasks.seeding import seeded


class BufferSlot:
    """Slot of a buffer in a module; the model's code may put another tensor into it."""

    def __init__(self, owner: nn.Module, key: str, tensor: Tensor) -> None:
        self._owner, self._key, self.tensor = owner, key, tensor
        self._initial: Tensor | None = None
        self._version = tensor._version

    @torch.no_grad()
    def collect(self) -> None:
        """Copy the values of the tensor that is in the slot now, and put ours back."""
        found = self._owner._buffers.get(self._key)
        if found is self.tensor:
            return
        if found is None or found.shape != self.tensor.shape or found.dtype != self.tensor.dtype:
            now = "missing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise InvalidInput(
                f"buffer {self._key!r} of {type(self._owner).__name__} was {self.tensor.dtype} of shape "
                f"{tuple(self.tensor.shape)} and is now {now}; only its values may change during training"
            )
        self.tensor.copy_(found)
        self.put_back()

    def put_back(self) -> None:
        """Put our tensor back into the slot."""
        self._owner._buffers[self._key] = self.tensor

    @torch.no_grad()
    def reset(self) -> None:
        """Restore the values that our tensor had at the first call."""
        if self._initial is None:
            self._initial = self.tensor.clone()
        elif self.tensor._version != self._version:
            self.tensor.copy_(self._initial)
        self._version = self.tensor._version


_REDUCED = (torch.bfloat16, torch.float16)
"""Types of tensors that have a float32 master copy in the flat buffer."""


class _Masters:
    """Tensors of reduced precision in a module, each with its float32 master copy in the flat buffer.

    A small step that bfloat16 would round away adds up in the master copy (Micikevicius et al., "Mixed precision
    training", ICLR 2018).
    """

    def __init__(self) -> None:
        self._parameters: list[tuple[Tensor, Tensor]] = []
        self._state: list[tuple[Tensor, Tensor]] = []

    def add(self, tensor: Tensor, view: Tensor) -> None:
        """Keep a tensor of the module with its place in the flat buffer."""
        (self._parameters if isinstance(tensor, nn.Parameter) else self._state).append((tensor, view))

    @torch.no_grad()
    def publish(self) -> None:
        """Round the master copies into the module."""
        for tensor, view in (*self._parameters, *self._state):
            tensor.copy_(view)

    @torch.no_grad()
    def collect_state(self) -> None:
        """Copy the module's state into the master copies."""
        for tensor, view in self._state:
            view.copy_(tensor)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors in the module."""
        return tuple(tensor for tensor, _ in (*self._parameters, *self._state))


class FlatModel:
    """A module with its parameters, state and gradients in flat float32 buffers.

    Parameters of bfloat16 or float16 stay as they are in the module. The flat buffer holds their float32 master copies,
    to which optimizers and updates apply; `publish` rounds them into the module before each forward pass.

    Frozen parameters, integer buffers and constant buffers (with infinities, such as attention masks) stay in the
    module; they do not travel, because every side builds the same model.

    Raises:
        InvalidInput: a trainable parameter of another type or without a shape yet, or no trainable parameter.
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
        _require_types([*trainable, *state])
        self.manifest = Manifest(tuple(TensorSpec(name, tuple(t.shape)) for name, t in [*trainable, *state]))
        self.parameter_count = sum(p.numel() for _, p in trainable)
        """Number of trainable floats at the start of the flat buffer; the rest is state."""
        self.values = torch.empty(self.manifest.size, device=device)
        """Parameters and state, shape (manifest.size,)."""
        self.gradients = torch.zeros(self.parameter_count, device=device)
        """Gradients, shape (parameter_count,); `backward()` adds to them."""
        self._masters = _Masters()
        views = self._adopt([tensor for _, tensor in [*trainable, *state]])
        self._own = tuple(p if p.dtype in _REDUCED else None for _, p in trainable)
        """The module's parameter where the trainable one is its master copy, else None."""
        self.trainable = tuple(
            p if own is None else nn.Parameter(view)
            for (_, p), own, view in zip(trainable, self._own, views, strict=False)
        )
        """Parameters for an optimizer, all float32: those of the module, or their master copies."""
        self._gradient_views = tuple(self._views_of_gradients())
        travelling = {id(tensor) for _, tensor in [*trainable, *state]}
        self.at_home: Mapping[str, Tensor] = {
            name: tensor
            for name, tensor in chain(module.named_parameters(), module.named_buffers())
            if id(tensor) not in travelling
        }
        """Tensors that do not travel, by name: frozen parameters, and buffers that are not state."""
        slots = [BufferSlot(owner, key, buffer) for owner in module.modules() for key, buffer in _own_buffers(owner)]
        self._state_slots = [slot for slot in slots if id(slot.tensor) in travelling]
        self._local_slots = [slot for slot in slots if id(slot.tensor) not in travelling]
        self.put_buffers_back()
        self.attach_gradients()

    def _adopt(self, tensors: list[Tensor]) -> list[Tensor]:
        """Copy the module's tensors into the flat buffer, and make those of float32 views of it; return the views."""
        views, start = [], 0
        for tensor in tensors:
            view = self.values[start : start + tensor.numel()].view(tensor.shape)
            view.copy_(tensor.detach())
            if tensor.dtype in _REDUCED:
                self._masters.add(tensor, view)
            else:
                tensor.data = view
            views.append(view)
            start += tensor.numel()
        return views

    @property
    def is_bfloat16(self) -> bool:
        """True if all trainable parameters of the module are of bfloat16."""
        return all(own is not None and own.dtype is torch.bfloat16 for own in self._own)

    @property
    def reduced(self) -> tuple[Tensor, ...]:
        """Tensors of the module that the flat buffer holds master copies of."""
        return self._masters.tensors

    def publish(self) -> None:
        """Round the master copies into the module; needed before a forward pass after a change of `values`."""
        self._masters.publish()

    def attach_gradients(self) -> None:
        """Make `backward()` add to `gradients`, after other code has replaced the parameters' `grad`."""
        for parameter, own, view in zip(self.trainable, self._own, self._gradient_views, strict=True):
            parameter.grad = view
            if own is not None:
                own.grad = None

    def collect_gradients(self) -> None:
        """Copy gradients that the model's code has put elsewhere, as `zero_grad()` does, back into `gradients`.

        Those of parameters with a master copy are added there, in float32.
        """
        for parameter, own, view in zip(self.trainable, self._own, self._gradient_views, strict=True):
            if own is not None:
                if own.grad is not None:
                    view.add_(own.grad.detach())
                    own.grad = None
                continue
            gradient = parameter.grad
            if gradient is not view:
                view.zero_() if gradient is None else view.copy_(gradient.detach())
                parameter.grad = view

    def collect_state(self) -> None:
        """Copy state that the model's code has put into new tensors back into `values`.

        Raises:
            InvalidInput: a buffer is missing, or has another shape or type.
        """
        for slot in self._state_slots:
            slot.collect()
        self._masters.collect_state()

    def put_buffers_back(self) -> None:
        """Restore the initial values of buffers that do not travel, and the tensor of every buffer.

        The result of work then does not depend on earlier work of the node.
        """
        for slot in self._state_slots:
            slot.put_back()
        for slot in self._local_slots:
            slot.put_back()
            slot.reset()

    @property
    def parameters(self) -> Tensor:
        """Trainable part of `values`, a view of shape (parameter_count,)."""
        return self.values[: self.parameter_count]

    @property
    def state(self) -> Tensor:
        """Rest of `values`, such as running statistics; a view."""
        return self.values[self.parameter_count :]

    def _views_of_gradients(self) -> Iterator[Tensor]:
        start = 0
        for parameter in self.trainable:
            yield self.gradients[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()

    def load(self, flat: Flat) -> None:
        """Set parameters and state, and restore the initial values of other buffers.

        Raises:
            ProtocolError: `flat` is not of shape (manifest.size,).
        """
        if flat.shape != (self.manifest.size,):
            raise ProtocolError(f"expected a flat buffer of shape ({self.manifest.size},), got {flat.shape}")
        self.put_buffers_back()
        source = torch.from_numpy(flat if flat.flags.writeable else flat.copy())
        self.values.copy_(source)
        self.publish()

    def flat(self) -> Flat:
        """Return a copy of parameters and state, shape (manifest.size,)."""
        return self.values.detach().to("cpu", copy=True).numpy()


def build(task: Task, seed: int, device: torch.device | str = "cpu") -> FlatModel:
    """Return a new model of `task`. The same seed gives the same parameters; the global generators are left alone.

    Raises:
        InvalidInput: the model's factory raised, or did not return a Module; see `FlatModel` too.
    """
    with seeded(seed):
        try:
            module = task.model()
        except Exception as error:
            raise InvalidInput(f"the model of task {task.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"the model of task {task.name!r} is a {type(module).__name__}, not a torch.nn.Module")
    return FlatModel(module, device)


def _require_types(named: Iterable[tuple[str, Tensor]]) -> None:
    """Check that tensors can travel.

    Raises:
        InvalidInput: one is of another type.
    """
    for name, tensor in named:
        if tensor.dtype not in (torch.float32, *_REDUCED):
            raise InvalidInput(
                f"{name!r} is {tensor.dtype}: updates are added and sent as float32, which would lose what it is more "
                "precise by. Call .float() on the model, or .to(torch.bfloat16)"
            )


def _own_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((key, buffer) for key, buffer in module._buffers.items() if buffer is not None)


def _changing_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    persistent = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in persistent and buffer.is_floating_point() and bool(torch.isfinite(buffer).all()):
            yield name, buffer
