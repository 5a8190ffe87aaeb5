"""User overrides of the node selection."""

from collections.abc import Set
from enum import StrEnum


class NodeOverride(StrEnum):
    """Override that a user sets for one node. It applies to every round until it is changed."""

    AUTOMATIC = "automatic"
    """The selector decides."""
    INCLUDE = "include"
    """The node takes part in every round for which it is available."""
    EXCLUDE = "exclude"
    """The node takes part in no round."""


class Overrides:
    """Overrides of all nodes. A node need not be known yet."""

    def __init__(self) -> None:
        self._by_node: dict[str, NodeOverride] = {}
        """The overrides that are set; none is AUTOMATIC."""

    def of(self, node: str) -> NodeOverride:
        """Return the override of a node; AUTOMATIC if none is set."""
        return self._by_node.get(node, NodeOverride.AUTOMATIC)

    def set(self, node: str, override: NodeOverride) -> None:
        """Set the override of a node; AUTOMATIC removes it."""
        if override is NodeOverride.AUTOMATIC:
            self._by_node.pop(node, None)
        else:
            self._by_node[node] = override

    def nodes_with(self, override: NodeOverride) -> Set[str]:
        """Return the nodes with INCLUDE, or those with EXCLUDE."""
        return {node for node, own in self._by_node.items() if own is override}
