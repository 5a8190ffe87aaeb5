"""Batch sizes, local steps and learning rate of each round."""

from hypergpu.common.strategies import BatchSizeStrategy
from hypergpu.coordinator.core.batching.controller import AdaptiveBatchController, BatchChange
from hypergpu.coordinator.core.batching.strategies import BatchReason

__all__ = ["AdaptiveBatchController", "BatchChange", "BatchReason", "BatchSizeStrategy"]
