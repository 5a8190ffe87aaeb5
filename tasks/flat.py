"""A model whose parameters and gradients are views into two flat buffers: nothing is copied per tensor.

The flat buffer holds, in this order,
  1. the trainable parameters, in the order of `named_parameters()`, and
  2. the state: floating-point buffers that training changes, such as BatchNorm's running statistics.
An update has the same layout. Its first `parameter_count` floats are gradients (one local step) or
changes (more); its state part is always a change, to be averaged and added, never fed to an optimiser.
"""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from common.errors import InvalidInput, ProtocolError
from common.tensors import Flat, Manifest, TensorSpec
from tasks.base import Task


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
        self.attach_gradients()

    def attach_gradients(self) -> None:
        """Let `backward()` add to `gradients`, where someone has set the parameters' own `grad` to something else."""
        start = 0
        for parameter in self.trainable:
            parameter.grad = self.gradients[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()

    @property
    def parameters(self) -> Tensor:
        """The trainable part of `values`, a view of shape (parameter_count,)."""
        return self.values[: self.parameter_count]

    @property
    def state(self) -> Tensor:
        """The rest of `values`: running statistics, a view."""
        return self.values[self.parameter_count :]

    def load(self, flat: Flat) -> None:
        """Set parameters and state.

        Raises:
            ProtocolError: `flat` is not of shape (manifest.size,).
        """
        if flat.shape != (self.manifest.size,):
            raise ProtocolError(f"a flat buffer of shape {flat.shape} where ({self.manifest.size},) belongs")
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = task.model()
        except Exception as error:
            raise InvalidInput(f"the model of task {task.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"the model of task {task.name!r} is a {type(module).__name__}, not a torch.nn.Module")
    return FlatModel(module, device)


def _changing_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    persistent = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in persistent and buffer.is_floating_point() and bool(torch.isfinite(buffer).all()):
            yield name, buffer
