"""Finds what links are like by name: profiles built in or from a file, with the distance between regions on top."""

from collections.abc import Iterable

from common.errors import ConfigError
from netsim_proxy.link.profiles import Profile, find_profile
from netsim_proxy.link.regions import between_regions


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
