"""Who trains in a round: standing, fairness, and whether a node pays for the time it adds."""

from coordinator.core.selection.selector import DynamicNodeSelector
from coordinator.core.selection.standing import NodeState, QuarantineReason
from coordinator.core.selection.strategies import SelectionReason, SelectionStrategy

__all__ = ["DynamicNodeSelector", "NodeState", "QuarantineReason", "SelectionReason", "SelectionStrategy"]
