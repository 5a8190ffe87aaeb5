"""Regions: round trips between them, from public figures.

The table is Microsoft's "Azure network round-trip latency statistics" of 9 April 2024 (medians of a month), CC BY 4.0;
`regions.csv` names the page and what was changed. Within one region we assume 1 ms.
"""

import csv
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from hypergpu.common.errors import UnknownName
from hypergpu.netsim_proxy.link.distributions import Shifted, Uniform
from hypergpu.netsim_proxy.link.profiles import Distance, Path, Profile

_SAME_REGION_MS: Final = 1.0

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "us-east": "eastus",
        "us-east-2": "eastus2",
        "us-central": "centralus",
        "us-south": "southcentralus",
        "us-west": "westus2",
        "ca-central": "canadacentral",
        "sa-east": "brazilsouth",
        "eu-west": "westeurope",
        "eu-ireland": "northeurope",
        "eu-uk": "uksouth",
        "eu-france": "francecentral",
        "eu-central": "germanywestcentral",
        "eu-north": "swedencentral",
        "me-central": "uaenorth",
        "af-south": "southafricanorth",
        "ap-south": "centralindia",
        "ap-southeast": "southeastasia",
        "ap-east": "eastasia",
        "ap-northeast": "japaneast",
        "ap-korea": "koreacentral",
        "au-east": "australiaeast",
    }
)
"""Common names of Azure regions. Both names are accepted."""

BACKBONE: Final = Profile(
    "backbone",
    up=Path(Uniform(0.0, 0.0005), 10_000),
    down=Path(Uniform(0.0, 0.0005), 10_000),
    jitter_correlation=0.5,
)
"""Link between data centres: up to 1 ms of jitter, 10 Gbit/s."""


def round_trip_ms(a: str, b: str) -> float:
    """Return the median round trip between two regions, in milliseconds.

    Raises:
        UnknownName: no such region; the message names the nearest.
    """
    first, second = find_region(a), find_region(b)
    return _SAME_REGION_MS if first == second else _table()[frozenset((first, second))]


def find_region(name: str) -> str:
    """Return the Azure name of a region.

    Raises:
        UnknownName: no such region; the message names the nearest.
    """
    if name in ALIASES:
        return ALIASES[name]
    if name not in ALIASES.values():
        raise UnknownName("region", name, [*ALIASES, *ALIASES.values()])
    return name


def at_distance(profile: Profile, round_trip: float, where: str = "") -> Profile:
    """Return the profile with a constant `round_trip` (milliseconds) on top, half of it on either path."""
    return _shifted(profile, Distance(round_trip, where))


def keep_distance(base: Profile, profile: Profile) -> Profile:
    """Return `profile` at the distance that `base` has: a node stays in its region when its link changes."""
    return profile if base.distance is None else _shifted(profile, base.distance)


def between_regions(node: str, upstream: str, last_mile: Profile | None = None) -> Profile:
    """Return the link of a node in one region to an upstream in another; by default from data centre to data centre.

    Raises:
        UnknownName: no such region.
    """
    return at_distance(last_mile or BACKBONE, round_trip_ms(node, upstream), where=f"from {node} to {upstream}")


@lru_cache(maxsize=256)  # a link compares profiles by identity
def _shifted(profile: Profile, distance: Distance) -> Profile:
    added_seconds = distance.round_trip_ms / 2000
    return replace(
        profile,
        name=f"{profile.name} {distance.route}".strip(),
        up=replace(profile.up, latency=Shifted(profile.up.latency, added_seconds)),
        down=replace(profile.down, latency=Shifted(profile.down.latency, added_seconds)),
        distance=distance,
    )


@cache
def _table() -> Mapping[frozenset[str], float]:
    text = files(__package__).joinpath("regions.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))
    columns = rows[0][1:]
    pairs = ((row[0], column, value) for row in rows[1:] for column, value in zip(columns, row[1:], strict=False))
    return MappingProxyType({frozenset((a, b)): float(value) for a, b, value in pairs})
