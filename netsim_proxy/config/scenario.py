"""Network of a scenario, for the proxy and the simulator: links, and events on them.

nodes:
  node_1: {profile: fibre, region: eu-west}
  edge: {count: 3, profile: [phone, poor]}  # edge_0, edge_1 and edge_2
links: {node_2: good, "*": average}  # short form, for a profile alone
profiles:
  phone: {based_on: 4g, loss: 0.02}
events:
  - {at_seconds: 10, type: latency_spike, node: node_1, duration_seconds: 5, added_ms: 200}
  - {round: 15, type: profile_change, nodes: [edge, node_2], profile: poor}
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from hypergpu.common.config import ConfigSection
from hypergpu.common.config.whole import REACHABLE, BytesOrZero, CountOrZero
from hypergpu.common.errors import ConfigError, InvalidInput, UnknownName
from hypergpu.common.rpc import check_node_id
from hypergpu.netsim_proxy.config.profile_file import Mbit, ProfileName, ProfileSection, build_profiles
from hypergpu.netsim_proxy.link.access_lane import UpstreamBandwidth
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.events import ALL, UPSTREAM, EventDirection, NetworkEvent
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.regions import between_regions

Amount = Annotated[float, Field(ge=0)]
OneOrMore = str | Annotated[list[str], Field(min_length=1)]


class EventSection(ConfigSection):
    """Event on links: at a time, in a round, or at once."""

    type: str
    """Type: latency_spike, profile_change, disconnect, partition, bandwidth_collapse, flap, limit_data, limit_time,
    timeout, slow_close or recovery."""
    node: str | None = None
    """Target: a node or a group of nodes; "*" = all."""
    nodes: tuple[str, ...] = ()
    """Several targets."""
    at_seconds: Amount | None = None
    """Time of the event, in seconds after the scenario is loaded."""
    round: CountOrZero | None = None
    """Training round of the event, instead of a time."""
    duration_seconds: Amount = 0.0
    """Duration in seconds; 0 = until a recovery."""
    profile: str = ""
    """New profile (profile_change)."""
    factor: Amount = 0.0
    """Factor of latencies (latency_spike), or share of the bandwidth that is left (bandwidth_collapse)."""
    added_ms: Amount = 0.0
    """Milliseconds added to a round trip (latency_spike)."""
    mode: str = ""
    """Kind of disconnection (disconnect, flap): reset, black_hole or half_open."""
    period_seconds: Amount = 0.0
    """Seconds from one interruption to the next (flap)."""
    group_b: tuple[str, ...] = ()
    """Nodes on the other side (partition). The upstream is on it, unless `nodes` names "upstream"."""
    direction: str = EventDirection.BOTH.value
    """Affected direction: up (from the node), down (to the node) or both."""
    limit_bytes: BytesOrZero = 0
    """Bytes that a connection carries in each direction before it is closed (limit_data)."""
    close_after_seconds: Amount = 0.0
    """Seconds that a connection lasts (limit_time, timeout), or delay of its end (slow_close)."""

    def event(self) -> NetworkEvent:
        """Return the event of the link model.

        Raises:
            InvalidInput: the values contradict one another.
            UnknownName: an unknown type or mode.
        """
        return NetworkEvent(
            self.type,
            target_node=self.node,
            new_profile=self.profile,
            scheduled_time=self.at_seconds,
            scheduled_round=self.round,
            nodes=self.nodes,
            duration_seconds=self.duration_seconds,
            factor=self.factor,
            added_ms=self.added_ms,
            mode=self.mode,
            period_seconds=self.period_seconds,
            group_b=self.group_b,
            direction=self.direction,
            limit_bytes=self.limit_bytes,
            close_after_seconds=self.close_after_seconds,
        )


class NodeSection(ConfigSection):
    """Link of one node, or of a group of identical nodes."""

    id: str = Field(min_length=1)
    """Name of the node, or prefix of a group: `edge` with a count of 3 makes edge_0, edge_1 and edge_2."""
    count: Annotated[int, Field(ge=1, le=100_000), REACHABLE] | None = None
    """Number of nodes in a group; by default one node with exactly this `id`."""
    profile: OneOrMore = "good"
    """Name of the link's profile, or a list that the nodes of a group repeat in order."""
    region: OneOrMore = ""
    """Region, such as eu-west: the distance to the upstream's region is added to the profile. The nodes of a group
    repeat a list in order."""

    def names(self) -> list[str]:
        """Return the ids of the nodes."""
        return [self.id] if self.count is None else [f"{self.id}_{index}" for index in range(self.count)]


def as_list(nodes: Any) -> Any:
    """Return nodes given by id as a list of nodes with their ids."""
    if isinstance(nodes, list | tuple):
        return nodes
    if not isinstance(nodes, dict):
        raise ValueError("expected a list of nodes, or nodes by id as in {node_1: {profile: good}}")
    return [{"id": str(key)} | (node or {}) if isinstance(node, dict | None) else node for key, node in nodes.items()]


class NodeLink(NamedTuple):
    """Link of a node, with the distance included, and the node's region."""

    profile: Profile
    region: str


class UpstreamBandwidthSection(ConfigSection):
    """Bandwidth of the upstream's own access link, which all nodes share."""

    down_mbit: Mbit | None = None
    """Megabits (10⁶) per second to all nodes together, which is what the upstream sends; no limit by default."""
    up_mbit: Mbit | None = None
    """Megabits (10⁶) per second from all nodes together, which is what the upstream receives; no limit by default."""
    queue_bytes: BytesOrZero = 0
    """Queue for the bandwidth of each direction, in bytes; 0 = 100 ms worth of it."""

    @model_validator(mode="after")
    def _possible(self) -> "UpstreamBandwidthSection":
        """Check the figures as the link model does."""
        self.bandwidth()
        return self

    def bandwidth(self) -> UpstreamBandwidth:
        """Return the bandwidth for the link model."""
        down, up = (math.inf if mbit is None else mbit for mbit in (self.down_mbit, self.up_mbit))
        return UpstreamBandwidth(down, up, int(self.queue_bytes))


class Network(ConfigSection):
    """Links and events of a scenario."""

    name: str = ""
    """Name; the file's name by default."""
    description: str = ""
    """Description."""
    nodes: Annotated[Sequence[NodeSection], BeforeValidator(as_list)] = ()
    """Nodes and their links, as a list or by id."""
    links: dict[str, str] = Field(default_factory=dict)
    """Profile of each link by node id, in short form; "*" = all other links."""
    loss_model: Literal["rpc", "transport"] | None = None
    """Effect of packet loss: an RPC that fails, or time that TCP takes to repair it."""
    congestion_control: CongestionControl | None = None
    """Congestion control of TCP on links whose profile names none: cubic (the default), reno or bbr."""
    region: str = ""
    """Region of the upstream, which is the coordinator; by default us-east."""
    upstream_bandwidth: UpstreamBandwidthSection | None = None
    """Bandwidth of the upstream's access link, which all nodes share; no limit by default."""
    profiles: dict[ProfileName, ProfileSection] = Field(default_factory=dict)
    """Custom link profiles by name, as in the proxy's profile files."""
    events: tuple[EventSection, ...] = ()
    """Events on links."""

    def names(self) -> "Names":
        """Return the ids of the nodes, groups and links.

        Raises:
            ScenarioError: a node twice, one with a name that means others in events, or one whose name is no node id.
        """
        return Names(self.nodes, self.links)

    def network_events(self, known: Mapping[str, Profile] | None = None) -> list[NetworkEvent]:
        """Return the events with groups expanded; `known` are profiles that exist already.

        Raises:
            ScenarioError: an impossible event.
        """
        names, find, found = self.names(), self.profile_finder(known), []
        for index, section in enumerate(self.events):
            path = "events", index
            try:
                event = section.event()
                if event.new_profile:
                    find(event.new_profile)
            except InvalidInput as error:
                raise ScenarioError((*path, *_key_of(error)), str(error)) from error
            target = (section.node,) if section.node is not None else ()
            nodes = (*names.spelt_out(target, *path, "node"), *names.spelt_out(section.nodes, *path, "nodes"))
            group_b = tuple(names.spelt_out(section.group_b, *path, "group_b"))
            found.append(replace(event, target_node=None, nodes=nodes, group_b=group_b))
        return found

    def profile_finder(self, known: Mapping[str, Profile] | None = None) -> Callable[[str], Profile]:
        """Return a function that finds a link profile by name, custom ones first; it raises UnknownName.

        Raises:
            ScenarioError: a custom profile is based on an unknown one.
        """
        try:
            return partial(find_profile, custom={**(known or {}), **build_profiles(self.profiles)})
        except UnknownName as error:
            broken = next(key for key, section in self.profiles.items() if section.based_on == error.name)
            later = f"{error.name!r} does not stand before it: put first what others are based on"
            message = later if error.name in self.profiles else str(error)
            raise ScenarioError(("profiles", broken, "based_on"), message) from error

    def node_links(self, upstream: str = "us-east", known: Mapping[str, Profile] | None = None) -> dict[str, NodeLink]:
        """Return the link of each node, in order, for an upstream in region `upstream` unless the scenario names one.

        Raises:
            ScenarioError: an unknown profile or region.
        """
        find, short, found = self.profile_finder(known), self.short_links(known), {}
        for at, group in enumerate(self.nodes):
            own = "profile" in group.model_fields_set
            for index, name in enumerate(group.names()):
                try:
                    profile = short.get(name) or (not own and short.get(ALL)) or find(cycle_value(group.profile, index))
                    region = cycle_value(group.region, index)
                    link = between_regions(region, self.region or upstream, profile) if region else profile
                except UnknownName as error:
                    raise ScenarioError(("nodes", at, error.kind), str(error)) from error
                found[name] = NodeLink(link, region)
        return found

    def short_links(self, known: Mapping[str, Profile] | None = None) -> dict[str, Profile]:
        """Return the profiles in `links`, by node id.

        Raises:
            ScenarioError: an unknown profile.
        """
        find, found = self.profile_finder(known), {}
        for node_id, profile in self.links.items():
            try:
                found[node_id] = find(profile)
            except UnknownName as error:
                raise ScenarioError(("links", node_id), str(error)) from error
        return found


class Names:
    """Ids of all nodes, and their groups. If no node is named, nodes of any name may join."""

    def __init__(self, groups: Sequence[NodeSection], links: Iterable[str] = ()) -> None:
        self.groups: dict[str, list[str]] = {}
        self._nodes: set[str] = set()
        for index, group in enumerate(groups):
            members = group.names()
            if group.id in (ALL, UPSTREAM):
                raise ScenarioError(
                    ("nodes", index, "id"), f"{group.id!r} is no name for a node: events mean others by it"
                )
            for name in (group.id, members[-1]):
                _require_node_id(name, "nodes", index, "id")
            taken = [name for name in dict.fromkeys((group.id, *members)) if name in self._nodes or name in self.groups]
            if taken:
                raise ScenarioError(
                    ("nodes", index, "id"), f"node {taken[0]!r} is there twice: give each an id of its own"
                )
            self.groups[group.id] = members
            self._nodes.update(members)
        links = list(links)
        for link in links:
            if link != ALL:
                _require_node_id(link, "links", link)
        self._known = {ALL, UPSTREAM, *self._nodes, *links}

    def spelt_out(self, targets: Sequence[str], *path: int | str) -> Iterator[str]:
        """Node ids, where some may be names of groups.

        Raises:
            ScenarioError: an unknown name, with the nearest known one, or a name that is no node id. `path` leads to
                the targets.
        """
        for target in targets:
            if target in self._known:
                yield target
            elif not self._nodes:
                _require_node_id(target, *path)
                yield target
            elif target in self.groups:
                yield from self.groups[target]
            else:
                raise ScenarioError(
                    path, str(UnknownName("node", target, self._known - {ALL, UPSTREAM} | {*self.groups}))
                )


class ScenarioError(ConfigError):
    """Fault in a scenario, with the path of keys to it."""

    def __init__(self, path: tuple[int | str, ...], message: str) -> None:
        self.path, self.message = path, message
        super().__init__(f"{'.'.join(map(str, path))}: {message}")


def cycle_value(value: str | list[str], index: int) -> str:
    """Return a single value, or the entry of a list for the node with this index, repeated in order."""
    return value if isinstance(value, str) else value[index % len(value)]


def _require_node_id(name: str, *path: int | str) -> None:
    try:
        check_node_id(name)
    except InvalidInput as error:
        raise ScenarioError(path, str(error)) from error


def _key_of(error: InvalidInput) -> tuple[str, ...]:
    keys = {"event type": "type", "mode": "mode", "direction": "direction", "profile": "profile"}
    return (keys[error.kind],) if isinstance(error, UnknownName) and error.kind in keys else ()
