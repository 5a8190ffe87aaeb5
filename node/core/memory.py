"""What training takes of a card's memory, and which batch fits."""

from dataclasses import dataclass
from numbers import Integral

from hypergpu.common.errors import InvalidInput, OutOfMemory
from hypergpu.node.core.gpu import GPUSpecs

RESERVED_BYTES = 512 << 20
"""What a CUDA context and the libraries' workspaces hold before a model is loaded, on a card with room for it."""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Bytes = reserved + parameters + gradients + optimiser state + batch × (activations + input) per sample."""

    parameter_bytes: int
    """Of parameters and state; the gradients take as much again."""
    activation_bytes: float
    """Of one sample: what autograd keeps between forward and backward, measured by the trainer, and the sample."""
    optimizer_copies: int = 1
    """Buffers of the parameters' size beside them: local SGD keeps the round's first parameters."""

    def fixed_bytes(self, specs: GPUSpecs) -> float:
        """What is taken whatever the batch; the reserve is at most a tenth of the card."""
        return min(RESERVED_BYTES, specs.memory_bytes / 10) + (2 + self.optimizer_copies) * self.parameter_bytes

    def bytes(self, batch_size: int, specs: GPUSpecs) -> float:
        """What a step on `batch_size` samples takes."""
        return self.fixed_bytes(specs) + batch_size * self.activation_bytes

    def largest_batch(self, specs: GPUSpecs) -> int:
        """The largest batch that fits; 0 where not even the model does."""
        room = specs.memory_bytes - self.fixed_bytes(specs)
        return max(0, int(room // max(self.activation_bytes, 1.0)))

    def require(self, batch_size: int, specs: GPUSpecs) -> None:
        """Check that `batch_size` samples fit.

        Raises:
            InvalidInput: `batch_size` < 1.
            OutOfMemory: they don't; the message and the error carry the largest batch that does.
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
        InvalidInput: it is not.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InvalidInput(f"a batch size is a whole number of at least 1, not {batch_size!r}")
