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
    from hypergpu.api import compare, run, simulate
    from hypergpu.common.config import SystemConfig
    from hypergpu.coordinator.core import AdaptationPolicy, BatchSizeStrategy, ConnectionQuality, SelectionStrategy
    from hypergpu.local_cluster import LocalNode
    from hypergpu.netsim_proxy.link import NetworkEvent, NetworkSimulator
    from hypergpu.node.core import MetricsCollector
    from hypergpu.node.service import GPUNodeService
    from hypergpu.results import RunResult
    from hypergpu.simulation.comparison import Comparison
    from hypergpu.simulation.scenario import Scenario
    from hypergpu.tasks import Task

_HOME = {
    "AdaptationPolicy": "hypergpu.coordinator.core",
    "AdaptiveBatchController": "hypergpu.adaptation",
    "AdaptiveOrchestrator": "hypergpu.adaptation",
    "BatchSizeStrategy": "hypergpu.coordinator.core",
    "Comparison": "hypergpu.simulation.comparison",
    "ConnectionQuality": "hypergpu.coordinator.core",
    "DynamicNodeSelector": "hypergpu.adaptation",
    "GPUNodeService": "hypergpu.node.service",
    "LocalNode": "hypergpu.local_cluster",
    "MetricsCollector": "hypergpu.node.core",
    "NetworkEvent": "hypergpu.netsim_proxy.link",
    "NetworkQualityMonitor": "hypergpu.adaptation",
    "NetworkSimulator": "hypergpu.netsim_proxy.link",
    "RunResult": "hypergpu.results",
    "Scenario": "hypergpu.simulation.scenario",
    "SelectionStrategy": "hypergpu.coordinator.core",
    "SystemConfig": "hypergpu.common.config",
    "Task": "hypergpu.tasks",
    "compare": "hypergpu.api",
    "run": "hypergpu.api",
    "simulate": "hypergpu.api",
}

__all__ = [
    "AdaptationPolicy",
    "AdaptiveBatchController",
    "AdaptiveOrchestrator",
    "BatchSizeStrategy",
    "Comparison",
    "ConnectionQuality",
    "DynamicNodeSelector",
    "GPUNodeService",
    "LocalNode",
    "MetricsCollector",
    "NetworkEvent",
    "NetworkQualityMonitor",
    "NetworkSimulator",
    "RunResult",
    "Scenario",
    "SelectionStrategy",
    "SystemConfig",
    "Task",
    "compare",
    "run",
    "simulate",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
