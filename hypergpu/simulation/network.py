"""Links of a scenario in virtual time, their events, and the churn of nodes."""

from collections.abc import Callable, Mapping
from functools import partial

from hypergpu.common.keyed_random import BufferedKeyedRandom, KeyedRandom
from hypergpu.netsim_proxy.link.access_lane import AccessLink
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import LossModel
from hypergpu.simulation.node import SimulatedNode
from hypergpu.simulation.rpc import SimulatedConnection
from hypergpu.simulation.scenario import Churn, Scenario
from hypergpu.simulation.virtual_time import VirtualTime


def make_connections(scenario: Scenario, time: VirtualTime) -> dict[str, SimulatedConnection]:
    """Return the connection of each node, in the order of the scenario."""
    find, loss_model = scenario.profile_finder(), LossModel(scenario.loss_model)
    section = scenario.upstream_bandwidth
    access = AccessLink(section.bandwidth()) if section is not None else None
    make = partial(
        Link,
        seed=scenario.seed,
        loss_model=loss_model,
        congestion_control=scenario.congestion_control or CongestionControl.CUBIC,
        profiles=find,
        draws=BufferedKeyedRandom,
        access=access,
    )
    return {
        name: SimulatedConnection(time, make(name, profile)) for name, profile in scenario.profiles_of_links().items()
    }


class Network:
    """Applies the events of a scenario to its links, by time or by round."""

    def __init__(
        self, scenario: Scenario, time: VirtualTime, nodes: Mapping[str, SimulatedNode], happened: Callable[[str], None]
    ) -> None:
        self._time, self._nodes, self._happened = time, nodes, happened
        self._by_round: dict[int, list[NetworkEvent]] = {}
        self._to_come: list[NetworkEvent] = []
        for event in scenario.network_events():
            self._to_come.append(event)
            if event.scheduled_round is not None:
                self._by_round.setdefault(event.scheduled_round, []).append(event)
            else:
                time.at(event.scheduled_time or 0.0, self._happen, event)

    def round_begins(self, number: int) -> None:
        """Apply the events that are due by this round."""
        for event in self._by_round.pop(number, ()):
            self._happen(event)

    @property
    def missed(self) -> list[str]:
        """Return the events that have not happened yet, in words."""
        return [
            f"round {event.scheduled_round}: {event.summary()}"
            if event.scheduled_round is not None
            else f"{event.scheduled_time or 0.0:g} s: {event.summary()}"
            for event in self._to_come
        ]

    def _happen(self, event: NetworkEvent) -> None:
        now = self._time.now
        self._to_come.remove(event)
        self._happened(event.summary())
        for node in self._nodes.values():
            if event.concerns(node.node_id):
                node.heartbeats.flush()
                node.connection.link.apply(event, now)
                node.connection.happened(event)


class ChurnProcess:
    """Restarts of a node's process at random times, keyed by seed and node."""

    def __init__(self, node: SimulatedNode, churn: Churn, seed: int, time: VirtualTime) -> None:
        self._node, self._churn, self._time = node, churn, time
        self._draws = KeyedRandom(seed, node.node_id, "churn")
        self._count = 0

    def begin(self) -> None:
        """Start the node; draw how long it runs."""
        self._node.start()
        self._time.at(self._time.now + self._churn.up_seconds * self._draw(), self._end)

    def _end(self) -> None:
        self._node.crash()
        self._time.at(self._time.now + self._churn.down_seconds * self._draw(), self.begin)

    def _draw(self) -> float:
        self._count += 1
        return self._draws.exponential(self._count)
