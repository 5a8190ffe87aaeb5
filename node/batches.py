"""Stream of samples from a user's data loader."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hypergpu.common.errors import HyperGPUError, InvalidInput, Unavailable
from hypergpu.common.retry import is_transient
from hypergpu.tasks.inputs import Inputs, as_float32, inputs_of, joined, model_inputs, shapes, tensor_of

_END = object()


class Batches:
    """Batches of any size from a `torch.utils.data.DataLoader` or another iterable of (inputs, targets).

    A loader that ends is iterated again for the next epoch. One that can be iterated only once, such as a generator,
    must yield as many samples as are taken.

    Raises:
        InvalidInput: `loader` cannot be iterated.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not isinstance(loader, Iterable):
            raise InvalidInput(
                f"a data loader must yield (inputs, targets); a {type(loader).__name__} cannot be iterated"
            )
        self._loader = loader
        self._iterator: Iterator[Any] = iter(())
        self._begun = False
        self._held: list[tuple[Inputs, Tensor]] = []
        self._broke: Exception | None = None
        self._seen = 0

    def take(self, samples: int | None) -> tuple[Inputs, Tensor]:
        """Return the next `samples` samples; None returns one batch as the loader yields it.

        Raises:
            Unavailable: the loader failed temporarily; no sample is lost, and the next call continues.
            InvalidInput: the loader ended early, raised, or did not yield pairs of equal numbers of inputs and targets.
        """
        if samples is None:
            held, self._held = self._held, []
            return _joined(held) if held else self._next()
        while sum(len(inputs) for inputs, _ in self._held) < samples:
            self._held.append(self._next())  # kept for the next call if this one fails
        inputs, targets = _joined(self._held)
        self._held = [(inputs[samples:], targets[samples:])] if len(inputs) > samples else []
        return inputs[:samples], targets[:samples]

    def _next(self) -> tuple[Inputs, Tensor]:
        for _ in range(2):
            while (batch := self._call(lambda: next(self._iterator, _END))) is not _END:
                pair = _pair(batch)
                if len(pair[0]):
                    self._seen += len(pair[0])
                    return pair
            if self._begun and self._iterator is self._loader:
                break
            self._begun, self._iterator = True, self._call(lambda: iter(self._loader))
        raise InvalidInput(
            f"the data loader ended early, after {self._seen} samples; give one that can be iterated again, "
            "such as a DataLoader"
        ) from self._broke

    def _call(self, loader: Callable[[], Any]) -> Any:
        """Call the loader's code and convert its errors."""
        try:
            return loader()
        except HyperGPUError:
            raise
        except Exception as error:
            self._broke = error  # a generator ends with its first error, which is then why it "ended early"
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            kind = Unavailable if is_transient(error) else InvalidInput
            raise kind(f"the data loader failed after {self._seen} samples: {told}") from error


def _joined(parts: list[tuple[Inputs, Tensor]]) -> tuple[Inputs, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return joined([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])


def _pair(batch: Any) -> tuple[Inputs, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InvalidInput(f"a data loader must yield (inputs, targets), not a {type(batch).__name__}")
    inputs, targets = model_inputs(inputs_of(batch[0])), as_float32(tensor_of(batch[1], "targets"))
    if len(inputs) != len(targets):
        raise InvalidInput(
            f"a data loader must yield as many targets as inputs; the shapes are {shapes(inputs)} and "
            f"{tuple(targets.shape)}"
        )
    return inputs, targets
