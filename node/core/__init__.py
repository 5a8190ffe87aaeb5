"""Pure decisions of a node: cards and what fits them, compute times, metrics, and the life cycle."""

from node.core.compute import ComputeModel
from node.core.gpu import PRESETS, GPUSpecs, specs_from
from node.core.memory import MemoryModel
from node.core.metrics_collector import MetricsCollector
from node.core.statistics import Anomaly

__all__ = ["PRESETS", "Anomaly", "ComputeModel", "GPUSpecs", "MemoryModel", "MetricsCollector", "specs_from"]
