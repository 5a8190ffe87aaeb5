"""The model that is trained: its parameters, the mean of the running round, and the step between two rounds."""

from collections.abc import Mapping

import numpy as np

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.tensors import Flat, Manifest
from hypergpu.coordinator.core.model.aggregation import StreamingMean, is_finite
from hypergpu.coordinator.core.model.optimizer import make_optimizer


class GlobalModel:
    """Parameters and state in one flat buffer, and everything that changes them.

    Args:
        initial: parameters, then state (running statistics), shape (manifest.size,).
        parameter_count: floats that the optimiser may touch; the rest is state, whose mean change is simply added.
    """

    def __init__(self, manifest: Manifest, initial: Flat, parameter_count: int, config: TrainingConfig) -> None:
        self.manifest = manifest
        self.values: Flat = np.array(initial, np.float32)
        self._spare: Flat = np.empty_like(self.values)
        self._kept: Flat = self.values.copy()
        self._parameter_count = parameter_count
        self._config = config
        self._mean = StreamingMean(len(self.values))
        self.update_norms: tuple[float, float] | None = None
        """Of the last step: (mean of |update|² over the nodes, |mean update|²); None if it was skipped."""
        self._optimizer = make_optimizer(config, parameter_count)

    def add(self, update: Flat, weight: float) -> None:
        """Take one checked update into the mean."""
        self._mean.add(update, weight)

    def discard(self) -> None:
        """Forget the updates that were added since the last step."""
        self._mean.reset()

    def step(self) -> bool:
        """Apply the mean. Return False if the result is not finite: the step is skipped and the optimiser reset."""
        mean = self._mean.take()
        self.update_norms = self._mean.norms(mean)
        direction = mean[: self._parameter_count]
        if self._config.local_steps == 1:
            np.negative(direction, out=direction)
        np.copyto(self._spare, self.values)
        self._spare[self._parameter_count :] += mean[self._parameter_count :]
        with np.errstate(over="ignore", invalid="ignore"):
            self._optimizer.step(self._spare[: self._parameter_count], direction)
        self._mean.reset()
        if not is_finite(self._spare):
            self._optimizer = make_optimizer(self._config, self._parameter_count)
            self.update_norms = None
            return False
        self.values, self._spare = self._spare, self.values
        return True

    def keep(self) -> None:
        """Remember the values as those to return to."""
        np.copyto(self._kept, self.values)

    def revert(self) -> None:
        """Return to the values that were kept last, or to the first; the optimizer starts afresh."""
        np.copyto(self.values, self._kept)
        self._optimizer = make_optimizer(self._config, self._parameter_count)

    def optimizer_state(self) -> Mapping[str, Flat]:
        """Return what a checkpoint has to keep of the optimizer, by name."""
        return self._optimizer.state()

    def restore(self, values: Flat, optimizer: Mapping[str, Flat] | None) -> None:
        """Go on from a checkpoint; None lets the optimizer start afresh. A refused one leaves the model unusable.

        Raises:
            ValueError: a tensor is missing, of another shape, or not finite.
        """
        if values.shape != self.values.shape:
            raise ValueError(f"{len(values)} parameters where {len(self.values)} belong")
        if not is_finite(values):
            raise ValueError("the parameters are not all finite")
        np.copyto(self.values, values)
        self.keep()
        if optimizer is not None:
            self._optimizer.restore(optimizer)
