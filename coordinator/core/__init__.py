"""Decisions as pure functions of events and time."""

from coordinator.core.batching import AdaptiveBatchController, BatchSizeStrategy
from coordinator.core.network import ConnectionQuality, NetworkQualityMonitor
from coordinator.core.orchestration import AdaptationPolicy, AdaptiveOrchestrator
from coordinator.core.selection import DynamicNodeSelector, SelectionStrategy

__all__ = [
    "AdaptationPolicy",
    "AdaptiveBatchController",
    "AdaptiveOrchestrator",
    "BatchSizeStrategy",
    "ConnectionQuality",
    "DynamicNodeSelector",
    "NetworkQualityMonitor",
    "SelectionStrategy",
]
