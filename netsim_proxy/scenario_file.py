"""Scenarios of the proxy, from YAML: what the links are like, and what happens to them when.

links: {node_1: good, node_2: phone, "*": average}
profiles:
  phone: {based_on: 4g, loss: 0.02}
events:
  - {at_seconds: 10, type: latency_spike, node: node_1, duration_seconds: 5, added_ms: 200}
  - {round: 15, type: profile_change, nodes: [node_1, node_2], profile: poor}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field

from common.config import Section
from common.errors import ConfigError, InvalidInput, UnknownName
from netsim_proxy.link.events import NetworkEvent
from netsim_proxy.link.profiles import Profile, find_profile
from netsim_proxy.profile_file import ProfileSection, build_profiles
from netsim_proxy.yaml_text import parse_yaml, place

Amount = Annotated[float, Field(ge=0)]


class EventSection(Section):
    """Something that happens to links: by time, by round, or at once."""

    type: str
    """latency_spike, profile_change, disconnect, partition, bandwidth_collapse, flap or recovery."""
    node: str | None = None
    """Whose link it happens to; "*" = all."""
    nodes: tuple[str, ...] = ()
    """More of them than one."""
    at_seconds: Amount | None = None
    """When, after the scenario was loaded."""
    round: Annotated[int, Field(ge=0)] | None = None
    """Or in which training round."""
    duration_seconds: Amount = 0.0
    """How long; 0 = until a recovery."""
    profile: str = ""
    """Of a profile change: the new one."""
    factor: Amount = 0.0
    """Of a latency spike: what latencies are multiplied by; of a bandwidth collapse: the share that is left."""
    added_ms: Amount = 0.0
    """Of a latency spike: what a round trip gains."""
    mode: str = ""
    """Of a disconnection or flap: reset, black_hole or half_open."""
    period_seconds: Amount = 0.0
    """Of a flap: one time down and up again."""
    group_b: tuple[str, ...] = ()
    """Of a partition: the other side. The upstream is on it, unless `nodes` names "upstream"."""

    def event(self) -> NetworkEvent:
        """As the link model has it.

        Raises:
            InvalidInput: it makes no sense. UnknownName: a type or mode that does not exist.
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
        )


class ScenarioFile(Section):
    """The whole file; every part may be left out."""

    name: str = ""
    """What it is called."""
    description: str = ""
    """What it shows."""
    profiles: dict[str, ProfileSection] = Field(default_factory=dict)
    """Profiles of its own, by name."""
    links: dict[str, str] = Field(default_factory=dict)
    """The profile of each link by node id; "*" is the default."""
    events: tuple[EventSection, ...] = ()
    """What happens."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a scenario says, checked."""

    name: str
    profiles: Mapping[str, Profile]
    """Its own, by name."""
    links: Mapping[str, Profile]
    """By node id; "*" is the default."""
    events: tuple[NetworkEvent, ...]
    """Times count from when the scenario is loaded."""


def parse_scenario(text: str, name: str, known: Mapping[str, Profile] | None = None) -> Scenario:
    """The scenario that a YAML text holds; `known` are custom profiles that there are already.

    Raises:
        ConfigError: it does not hold; NAME:LINE, key and what was expected are named.
    """
    file = parse_yaml(ScenarioFile, text, name)
    try:
        profiles = build_profiles(file.profiles)
    except UnknownName as error:
        broken = next(key for key, section in file.profiles.items() if section.based_on == error.name)
        raise _fault(text, name, ("profiles", broken, "based_on"), error) from error
    find = partial(find_profile, custom={**(known or {}), **profiles})
    links = {}
    for node_id, profile in file.links.items():
        try:
            links[node_id] = find(profile)
        except UnknownName as error:
            raise _fault(text, name, ("links", node_id), error) from error
    events = []
    for index, section in enumerate(file.events):
        try:
            event = section.event()
            if event.new_profile:
                find(event.new_profile)
        except InvalidInput as error:
            raise _fault(text, name, ("events", index, *_key_of(error)), error) from error
        events.append(event)
    return Scenario(file.name or name, profiles, links, tuple(events))


def _key_of(error: InvalidInput) -> tuple[str, ...]:
    keys = {"event type": "type", "mode": "mode", "profile": "profile"}
    return (keys[error.kind],) if isinstance(error, UnknownName) and error.kind in keys else ()


def _fault(text: str, name: str, path: tuple[int | str, ...], error: InvalidInput) -> ConfigError:
    return ConfigError(f"{place(text, name, path)}: {'.'.join(map(str, path))}: {error}")
