"""Decisions as pure functions of events and time."""

from hypergpu.coordinator.core.batching import AdaptiveBatchController, BatchSizeStrategy
from hypergpu.coordinator.core.network import ConnectionQuality, NetworkQualityMonitor
from hypergpu.coordinator.core.orchestration import AdaptationPolicy, AdaptiveOrchestrator
from hypergpu.coordinator.core.selection import DynamicNodeSelector, SelectionStrategy

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
