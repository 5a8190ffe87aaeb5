"""Pure logic of a node: cards, memory, step times, metrics and the life cycle."""

from hypergpu.node.core.anomalies import Anomaly
from hypergpu.node.core.compute import ComputeModel
from hypergpu.node.core.gpu import PRESETS, GPUSpecs, specs_from
from hypergpu.node.core.memory import MemoryModel
from hypergpu.node.core.metrics_collector import MetricsCollector

__all__ = ["PRESETS", "Anomaly", "ComputeModel", "GPUSpecs", "MemoryModel", "MetricsCollector", "specs_from"]
