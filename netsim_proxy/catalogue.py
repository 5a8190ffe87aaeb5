"""Finds what links are like by name: profiles built in or from a file, with the distance between regions on top.

The readers of files are imported when a file is read: a proxy without one does without pydantic, 9 MB of it.
"""

from collections.abc import Iterable
from pathlib import Path

from common.errors import ConfigError, InvalidInput
from netsim_proxy.link.events import ALL
from netsim_proxy.link.profiles import Profile, find_profile
from netsim_proxy.link.regions import between_regions
from netsim_proxy.ports import Ports
from netsim_proxy.schedule import Entry, Schedule


class Catalogue:
    """Profiles by name, for an upstream that stands in `upstream_region`."""

    def __init__(self, upstream_region: str = "us-east") -> None:
        self._upstream_region = upstream_region
        self._custom: dict[str, Profile] = {}

    def profile(self, name: str, region: str = "") -> Profile:
        """The profile of a node in `region`; without one there is no distance to the upstream.

        Raises:
            UnknownName: no such profile, or no such region.
        """
        profile = find_profile(name, self._custom)
        return between_regions(region, self._upstream_region, profile) if region else profile

    def add_file(self, path: Path) -> None:
        """Know the profiles of a file too.

        Raises:
            ConfigError: it does not hold profiles; line, key and what was expected are named.
        """
        from netsim_proxy.profile_file import load_profiles  # noqa: PLC0415 - see above

        self._custom.update(load_profiles(path))

    def described(self, text: str, region: str = "") -> Profile:
        """The profile of this name, or the one that is written here in YAML.

        Raises:
            ConfigError: YAML that holds no profile.
            InvalidInput: it holds more than one.
            UnknownName: no such profile, or no such region.
        """
        if ":" not in text:
            return self.profile(text, region)
        from netsim_proxy.profile_file import parse_profiles  # noqa: PLC0415 - see above

        profiles = parse_profiles(text, "profile")
        if len(profiles) != 1:
            raise InvalidInput(f"one profile is wanted, not {len(profiles)}")
        self._custom.update(profiles)
        return self.profile(next(iter(profiles)), region)

    def load_scenario(self, text: str, name: str, ports: Ports, schedule: Schedule) -> list[Entry]:
        """Set links as a scenario says, and plan its events from now on.

        Raises:
            ConfigError: it does not hold; file, line, key and what was expected are named.
        """
        from netsim_proxy.scenario_file import parse_scenario  # noqa: PLC0415 - see above

        scenario = parse_scenario(text, name, self._custom, self._upstream_region)
        self._custom.update(scenario.profiles)
        if scenario.loss_model is not None:
            ports.set_loss_model(ALL, scenario.loss_model)
        for node_id, link in scenario.links.items():
            ports.set_profile(node_id, link.profile, link.region)
        return [schedule.add(event, event.scheduled_time, event.scheduled_round) for event in scenario.events]

    def of_nodes(self, pairs: Iterable[str]) -> dict[str, tuple[Profile, str]]:
        """The profile and region of each node, from `NODE=PROFILE` or `NODE=PROFILE@REGION`.

        Raises:
            ConfigError: not of that form.
            UnknownName: no such profile, or no such region.
        """
        out = {}
        for pair in pairs:
            node_id, equals, rest = pair.partition("=")
            name, _, region = rest.partition("@")
            if not (node_id and equals and name):
                raise ConfigError(f"--node-profile {pair!r} is not of the form NODE=PROFILE, as in node_1=good")
            out[node_id] = self.profile(name, region), region
        return out
