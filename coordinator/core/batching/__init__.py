"""How much each node computes in a round: batch sizes, local steps, and the learning rate that follows."""

from hypergpu.coordinator.core.batching.controller import AdaptiveBatchController, BatchChange
from hypergpu.coordinator.core.batching.strategies import BatchReason, BatchSizeStrategy

__all__ = ["AdaptiveBatchController", "BatchChange", "BatchReason", "BatchSizeStrategy"]
