"""Number of connections that the transfers of a node share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hypergpu.common.tensors import STRIPE_BYTES

MAX_CONNECTIONS: Final = 16
"""Most connections of one transfer. Where a bottleneck is shared, k connections take the share of k users."""

MOST_FAILURES: Final = 3
"""Breaks in a row after which a connection of a transfer is given up. The others go on."""
FIRST_BACKOFF_SECONDS: Final = 0.2
"""Wait after the first break of a connection; doubles with each further one."""
MOST_FETCHES: Final = 3
"""Attempts of a node to get the chunks of parameters that broken connections have lost."""


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


def useful_connections(ordered: int, nbytes: int) -> int:
    """Return how many of the ordered connections a transfer of a payload has chunks for, at least one."""
    return max(1, min(ordered, MAX_CONNECTIONS, -(-nbytes // STRIPE_BYTES)))
