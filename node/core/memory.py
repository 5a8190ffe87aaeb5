"""Memory model of training: which batch fits a card."""

from dataclasses import dataclass
from numbers import Integral

from hypergpu.common.errors import InvalidInput, OutOfMemory
from hypergpu.node.core.gpu import GPUSpecs

RESERVED_BYTES = 512 << 20
"""Memory of a CUDA context and the libraries' workspaces, on a card large enough."""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Bytes = reserved + parameters + gradients + optimizer state + batch × (activations + input) per sample."""

    parameter_bytes: int
    """Memory of parameters and state; the gradients need as much again."""
    activation_bytes: float
    """Memory per sample: the sample, and the tensors that autograd saves for the backward pass, as measured."""
    optimizer_copies: int = 1
    """Further buffers of the parameters' size: local SGD keeps the initial parameters of the round."""

    def fixed_bytes(self, specs: GPUSpecs) -> float:
        """Return the memory that does not depend on the batch; the reserve is at most a tenth of the card."""
        return min(RESERVED_BYTES, specs.memory_bytes / 10) + (2 + self.optimizer_copies) * self.parameter_bytes

    def bytes(self, batch_size: int, specs: GPUSpecs) -> float:
        """Return the memory of a step on `batch_size` samples."""
        return self.fixed_bytes(specs) + batch_size * self.activation_bytes

    def largest_batch(self, specs: GPUSpecs) -> int:
        """Return the largest batch that fits; 0 if the model does not fit."""
        room = specs.memory_bytes - self.fixed_bytes(specs)
        return max(0, int(room // max(self.activation_bytes, 1.0)))

    def require(self, batch_size: int, specs: GPUSpecs) -> None:
        """Check that `batch_size` samples fit.

        Raises:
            InvalidInput: `batch_size` < 1.
            OutOfMemory: the batch does not fit; carries the largest that does.
        """
        require_batch_size(batch_size)
        largest = self.largest_batch(specs)
        if batch_size > largest:
            raise OutOfMemory(
                f"a batch of {batch_size} needs {self.bytes(batch_size, specs) / (1 << 20):,.0f} MiB "
                f"and {specs.name} has {specs.memory_mb:,.0f}; "
                + (f"the largest that fits is {largest}" if largest else "not even the model fits"),
                largest,
            )


def require_batch_size(batch_size: int) -> None:
    """Check that a batch size is a whole number of samples, at least one.

    Raises:
        InvalidInput: any other value.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InvalidInput(f"a batch size must be a whole number of at least 1, not {batch_size!r}")
