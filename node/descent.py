"""Local SGD inside the backward pass."""

from typing import Self

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tasks import FlatModel


class Descent:
    """While entered, each parameter moves as soon as its gradient is there, still in the cache, and the gradient goes.

    On a CPU, a step of four million parameters takes a third less than with zeroing, adding into a flat buffer, and
    moving along that (Lv et al., "Full parameter fine-tuning for large language models with limited resources", ACL
    2024, do it for the memory). A model whose backward pass still needs a parameter that has moved raises RuntimeError,
    as do sparse gradients: autograd counts the versions of what it saved.
    """

    def __init__(self, model: FlatModel, learning_rate: float) -> None:
        self._model, self._rate = model, learning_rate
        self._norms: list[Tensor] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for parameter in self._model.trainable:
            parameter.grad = None
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._move))
        return self

    def __exit__(self, *raised: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._model.attach_gradients()

    def norm(self) -> float:
        """The norm of the whole gradient since the last call."""
        total = float(torch.linalg.vector_norm(torch.stack(self._norms))) if self._norms else 0.0
        self._norms.clear()
        return total

    @torch.no_grad()
    def _move(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        self._norms.append(torch.linalg.vector_norm(gradient))
        parameter.add_(gradient, alpha=-self._rate)
        parameter.grad = None
