"""Number of connections that the transfers of a node share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_CONNECTIONS: Final = 16
"""Most connections of one transfer. Where a bottleneck is shared, k connections take the share of k users."""


class Connections(NamedTuple):
    """Connections that one transfer shares, by direction."""

    down: int = 1
    """Connections that bring the parameters to the node."""
    up: int = 1
    """Connections that bring the update to the coordinator."""


ONE_EACH: Final = Connections()


@dataclass(frozen=True, slots=True)
class ConnectionPlan:
    """Connections of each node's transfers."""

    usual: Connections = ONE_EACH
    """Connections of nodes that are not in `by_node`."""
    by_node: Mapping[str, Connections] = field(default_factory=dict)

    def of(self, node: str) -> Connections:
        """Return the connections of a node."""
        return self.by_node.get(node, self.usual)


ONE_FOR_ALL: Final = ConnectionPlan()
