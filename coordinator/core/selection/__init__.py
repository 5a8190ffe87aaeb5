"""Node selection: strategies, quarantine, fairness and user overrides."""

from hypergpu.common.strategies import SelectionStrategy
from hypergpu.coordinator.core.selection.quarantine import NodeState, QuarantineReason
from hypergpu.coordinator.core.selection.selector import DynamicNodeSelector
from hypergpu.coordinator.core.selection.strategies import SelectionReason

__all__ = ["DynamicNodeSelector", "NodeState", "QuarantineReason", "SelectionReason", "SelectionStrategy"]
