"""Settings of the transfers between the coordinator and its nodes."""

from typing import Annotated, Literal

from pydantic import Field

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import REACHABLE
from hypergpu.common.connections import MAX_CONNECTIONS, ConnectionPlan, Connections


class TransfersConfig(ConfigSection):
    """Transfers of parameters and updates."""

    connections: Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_CONNECTIONS), REACHABLE] = "auto"
    """TCP connections that a node's transfer shares, in each direction: 1 to 16. On a lossy link with a long round trip
    one connection is far slower than the line. `auto` chooses for each node and direction by measured rates, and one
    with the policy `none`. Where a bottleneck is shared with others, k connections take the share of k users."""

    @property
    def fixed(self) -> ConnectionPlan:
        """Connections of every node where a number is configured; one each before `auto` has chosen."""
        count = 1 if self.connections == "auto" else self.connections
        return ConnectionPlan(Connections(count, count))
