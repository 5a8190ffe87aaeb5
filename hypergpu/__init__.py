"""HyperGPU: train one PyTorch model on many machines joined by bad networks.

`from hypergpu import X` reaches every public name. Each is loaded when it is first asked for, so that a script which
only simulates a network needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypergpu.adaptation import (
        AdaptiveBatchController,
        AdaptiveOrchestrator,
        DynamicNodeSelector,
        NetworkQualityMonitor,
    )
    from hypergpu.common.config import SystemConfig
    from hypergpu.coordinator.core import AdaptationPolicy, BatchSizeStrategy, ConnectionQuality, SelectionStrategy
    from hypergpu.netsim_proxy.link import NetworkEvent, NetworkSimulator
    from hypergpu.node.core import MetricsCollector
    from hypergpu.node.service import GPUNodeService
    from hypergpu.tasks import Task

_HOME = {
    "AdaptationPolicy": "hypergpu.coordinator.core",
    "AdaptiveBatchController": "hypergpu.adaptation",
    "AdaptiveOrchestrator": "hypergpu.adaptation",
    "BatchSizeStrategy": "hypergpu.coordinator.core",
    "ConnectionQuality": "hypergpu.coordinator.core",
    "DynamicNodeSelector": "hypergpu.adaptation",
    "GPUNodeService": "hypergpu.node.service",
    "MetricsCollector": "hypergpu.node.core",
    "NetworkEvent": "hypergpu.netsim_proxy.link",
    "NetworkQualityMonitor": "hypergpu.adaptation",
    "NetworkSimulator": "hypergpu.netsim_proxy.link",
    "SelectionStrategy": "hypergpu.coordinator.core",
    "SystemConfig": "hypergpu.common.config",
    "Task": "hypergpu.tasks",
}

__all__ = [
    "AdaptationPolicy",
    "AdaptiveBatchController",
    "AdaptiveOrchestrator",
    "BatchSizeStrategy",
    "ConnectionQuality",
    "DynamicNodeSelector",
    "GPUNodeService",
    "MetricsCollector",
    "NetworkEvent",
    "NetworkQualityMonitor",
    "NetworkSimulator",
    "SelectionStrategy",
    "SystemConfig",
    "Task",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
