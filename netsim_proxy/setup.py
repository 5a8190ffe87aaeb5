"""What links are like at the start, from the command line and files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from common.errors import ConfigError
from netsim_proxy.link.profiles import Profile, find_profile


def profile_finder(path: Path | None) -> Callable[[str], Profile]:
    """Finds profiles by name: those of the YAML file at `path`, and the built-in ones.

    Raises:
        ConfigError: the file does not hold profiles.
    """
    return find_profile


def node_profiles(pairs: Iterable[str], find: Callable[[str], Profile]) -> dict[str, Profile]:
    """The profile of each node, from `NODE=PROFILE`.

    Raises:
        ConfigError: not of that form.
        UnknownName: no such profile.
    """
    out = {}
    for pair in pairs:
        node_id, equals, name = pair.partition("=")
        if not (node_id and equals and name):
            raise ConfigError(f"--node-profile {pair!r} is not of the form NODE=PROFILE, as in node_1=good")
        out[node_id] = find(name)
    return out
