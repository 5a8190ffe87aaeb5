"""Finds what links are like by name: profiles built in or from a file, with the distance between regions on top.

The readers of files are imported when a file is read: their pydantic models take 4 MB.
"""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypergpu.common.errors import ConfigError, InvalidInput, ResourceExhausted
from hypergpu.common.rpc import check_node_id
from hypergpu.netsim_proxy.api.schedule import Entry, Schedule
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.link.events import ALL
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.regions import between_regions

if TYPE_CHECKING:
    from hypergpu.netsim_proxy.config.scenario_file import Scenario

MAX_TEXT: Final = 1 << 20
"""Characters of a scenario or profile that is sent to a running proxy: reading them takes seconds, in a thread."""
MAX_PROFILES: Final = 1000
_LINKS_AT_ONCE: Final = 50


class ProfileRegistry:
    """Profiles by name, for an upstream that stands in `upstream_region`."""

    def __init__(self, upstream_region: str = "us-east") -> None:
        self._upstream_region = upstream_region
        self._custom: dict[str, Profile] = {}

    def profile(self, name: str, region: str = "") -> Profile:
        """Return the profile of a node in `region`; without one there is no distance to the upstream.

        Raises:
            UnknownName: no such profile, or no such region.
        """
        profile = find_profile(name, self._custom)
        return between_regions(region, self._upstream_region, profile) if region else profile

    async def read_profiles(self, text: str, path: Path) -> Mapping[str, Profile]:
        """Return the profiles of a file, YAML or a trace as CSV; nothing is changed yet.

        Raises:
            ConfigError: it does not hold profiles; line, key and what was expected are named.
            ResourceExhausted: there would be too many.
        """
        from hypergpu.netsim_proxy.config.profile_file import profiles_of  # noqa: PLC0415 - see above

        profiles = await asyncio.to_thread(profiles_of, text, path)
        self._require_room(profiles)
        return profiles

    def change(self, profiles: Mapping[str, Profile], links: LinkRegistry) -> None:
        """Know these profiles; links that have one of them already get what it is now."""
        changed = {name for name, profile in profiles.items() if self._custom.get(name, profile) != profile}
        self.add(profiles)
        if links.profile_name in changed:
            links.set_default(self.profile(links.profile_name, links.region))
        for paced in list(links):
            if paced.profile_name in changed:
                links.set_profile(paced.name, self.profile(paced.profile_name, paced.region), paced.region)

    async def described(self, text: str, region: str = "") -> Profile:
        """Return the profile of this name, or the one that is written here in YAML.

        Raises:
            ConfigError: YAML that holds no profile.
            InvalidInput: it holds more than one.
            ResourceExhausted: the text is too long, or there are too many custom profiles.
            UnknownName: no such profile, or no such region.
        """
        if ":" not in text:
            return self.profile(text, region)
        from hypergpu.netsim_proxy.config.profile_file import parse_profiles  # noqa: PLC0415 - see above

        _require_short(text, "a profile")
        profiles = await asyncio.to_thread(parse_profiles, text, "profile")
        if len(profiles) != 1:
            raise InvalidInput(f"expected one profile, got {len(profiles)}")
        self.add(profiles)
        return self.profile(next(iter(profiles)), region)

    async def load_scenario(self, text: str, name: str, links: LinkRegistry, schedule: Schedule) -> list[Entry]:
        """Set links as a scenario says, and plan its events from now on.

        Raises:
            ConfigError: it does not hold; file, line, key and what was expected are named.
            ResourceExhausted: the text is too long, or there would be too many profiles or events.
        """
        return await self.apply_scenario(await self.read_scenario(text, name, {}), links, schedule)

    async def read_scenario(self, text: str, name: str, profiles: Mapping[str, Profile]) -> "Scenario":
        """Check a scenario, which may use `profiles` too; the event loop runs meanwhile, and nothing is changed yet.

        Raises:
            ConfigError, ResourceExhausted: as `load_scenario`.
        """
        from hypergpu.netsim_proxy.config.scenario_file import parse_scenario  # noqa: PLC0415 - see above

        _require_short(text, "a scenario")
        known = {**self._custom, **profiles}
        scenario = await asyncio.to_thread(parse_scenario, text, name, known, self._upstream_region)
        self._require_room({**profiles, **scenario.profiles})
        return scenario

    async def apply_scenario(self, scenario: "Scenario", links: LinkRegistry, schedule: Schedule) -> list[Entry]:
        """Set links as a checked scenario says, and plan its events from now on; the event loop runs meanwhile.

        Raises:
            ResourceExhausted: there would be too many events, links or profiles; then nothing is changed.
        """
        schedule.require_room(len(scenario.events), sum(event.size for event in scenario.events))
        links.require_room(scenario.links)
        self.add(scenario.profiles)
        if scenario.loss_model is not None:
            links.set_loss_model(ALL, scenario.loss_model)
        if scenario.upstream_bandwidth is not None:
            links.set_upstream_bandwidth(scenario.upstream_bandwidth)
        if scenario.congestion_control is not None:
            links.set_congestion_control(scenario.congestion_control)
        for count, (node_id, link) in enumerate(scenario.links.items()):
            links.set_profile(node_id, link.profile, link.region)
            if count % _LINKS_AT_ONCE == 0:
                await asyncio.sleep(0)
        await links.settled()
        return [schedule.add(event, event.scheduled_time, event.scheduled_round) for event in scenario.events]

    def add(self, profiles: Mapping[str, Profile]) -> None:
        """Know these profiles too.

        Raises:
            ResourceExhausted: there would be too many.
        """
        self._require_room(profiles)
        self._custom.update(profiles)

    def _require_room(self, profiles: Mapping[str, Profile]) -> None:
        if len(self._custom.keys() | profiles.keys()) > MAX_PROFILES:
            raise ResourceExhausted(f"{MAX_PROFILES} custom profiles are allowed: use one again")

    def of_nodes(self, pairs: Iterable[str]) -> dict[str, tuple[Profile, str]]:
        """Return the profile and region of each node, from `NODE=PROFILE` or `NODE=PROFILE@REGION`.

        Raises:
            InvalidInput: not of that form, or no node id.
            UnknownName: no such profile, or no such region.
        """
        out = {}
        for pair in pairs:
            node_id, equals, rest = pair.partition("=")
            name, _, region = rest.partition("@")
            if not (node_id and equals and name):
                raise ConfigError(f"--node-profile {pair!r} is not of the form NODE=PROFILE, as in node_1=good")
            out[check_node_id(node_id)] = self.profile(name, region), region
        return out


def _require_short(text: str, what: str) -> None:
    if len(text) > MAX_TEXT:
        raise ResourceExhausted(f"{what} of {len(text)} characters is too long: {MAX_TEXT} are allowed")
