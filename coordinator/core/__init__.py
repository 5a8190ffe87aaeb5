"""Decisions as pure functions of events and time."""

from hypergpu.coordinator.core.adaptation import AdaptationPolicy, AdaptiveOrchestrator
from hypergpu.coordinator.core.batching import AdaptiveBatchController, BatchSizeStrategy
from hypergpu.coordinator.core.links import ConnectionQuality, NetworkQualityMonitor
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
