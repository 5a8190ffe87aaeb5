"""A stream of samples from whatever a user has as a data loader."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from common.errors import InvalidInput
from tasks.samples import as_float32


class Batches:
    """Cuts batches of any size out of a `torch.utils.data.DataLoader` or another iterable of (inputs, targets).

    A loader that ends is begun again, so that epochs follow one another. One that cannot be begun again, such as a
    generator, may end only once its samples are no longer asked for.

    Raises:
        InvalidInput: `loader` cannot be iterated.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not isinstance(loader, Iterable):
            raise InvalidInput(f"a data loader yields (inputs, targets); a {type(loader).__name__} yields nothing")
        self._loader = loader
        self._iterator: Iterator[Any] = iter(())
        self._begun = False
        self._held: tuple[Tensor, Tensor] | None = None
        self._seen = 0

    def take(self, samples: int | None) -> tuple[Tensor, Tensor]:
        """The next `samples` samples; None takes one batch as the loader gives it.

        Raises:
            InvalidInput: the loader ended early, or yields something else than pairs of as many inputs and targets.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        missing = samples
        while missing is None or missing > 0:
            inputs, targets = self._held or self._next()
            self._held = None
            if missing is not None and len(inputs) > missing:
                self._held = inputs[missing:], targets[missing:]
                inputs, targets = inputs[:missing], targets[:missing]
            parts.append((inputs, targets))
            if missing is None:
                break
            missing -= len(inputs)
        if len(parts) == 1:
            return parts[0]
        return torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])

    def _next(self) -> tuple[Tensor, Tensor]:
        for _ in range(2):
            for batch in self._iterator:
                pair = _pair(batch)
                if len(pair[0]):
                    self._seen += len(pair[0])
                    return pair
            if self._begun and self._iterator is self._loader:
                break
            self._begun, self._iterator = True, iter(self._loader)
        raise InvalidInput(
            f"the data loader ended early, after {self._seen} samples; give one that can be iterated again, "
            "such as a DataLoader"
        )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InvalidInput(f"a data loader must yield (inputs, targets), not a {type(batch).__name__}")
    try:
        inputs, targets = (as_float32(torch.as_tensor(part)) for part in batch)
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = " and ".join(type(part).__name__ for part in batch)
        raise InvalidInput(f"a data loader must yield two tensors, not {kinds}: {error}") from error
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise InvalidInput(
            f"a data loader must yield as many targets as inputs; the shapes are {tuple(inputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    return inputs, targets
