"""Custom link profiles from YAML.

profiles:
  office:
    rtt_ms: [20, 40]
    loss: 0.002
    burst: 4
    down: {bandwidth_mbit: 100}
    up: {bandwidth_mbit: 20}
  phone:
    based_on: 4g
    rtt_ms: {distribution: lognormal, median: 40, sigma: 0.5, floor: 20}
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hypergpu.common.config import ConfigSection
from hypergpu.common.config.whole import BytesOrZero
from hypergpu.common.errors import ConfigError, UnknownName
from hypergpu.common.files import read_text, shown
from hypergpu.netsim_proxy.config.yaml_text import fault, parse_yaml
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.distributions import Empirical, Latency, LogNormal, Normal, Pareto, Uniform
from hypergpu.netsim_proxy.link.profiles import PROFILES, Loss, Path, Profile, find_profile
from hypergpu.netsim_proxy.link.traces import parse_trace

MAX_PROFILE_NAME: Final = 64
"""Longest name of a profile, in characters: it is a label of each link's metrics."""


def check_profile_name(name: str) -> str:
    """Return a valid name of a custom profile.

    Raises:
        ValueError: it is empty, too long, or does not print as itself.
    """
    if not 1 <= len(name) <= MAX_PROFILE_NAME or not name.isprintable():
        raise ValueError(f"a profile's name has 1 to {MAX_PROFILE_NAME} printable characters, not {name[:80]!r}")
    return name


ProfileName = Annotated[str, AfterValidator(check_profile_name)]
Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Burst = Annotated[float, Field(ge=1)]
Mbit = Annotated[float, Field(gt=0)]


class UniformSection(ConfigSection):
    """Uniform distribution between two bounds."""

    distribution: Literal["uniform"]
    """uniform"""
    low: Milliseconds
    """Lowest value, in milliseconds."""
    high: Milliseconds
    """Highest value, in milliseconds."""

    @model_validator(mode="after")
    def _ordered(self) -> "UniformSection":
        """Check the order of the bounds."""
        if self.low > self.high:
            raise ValueError(f"the lower bound {self.low:g} is above the upper one {self.high:g}")
        return self

    def latency(self, share: float) -> Latency:
        """Return the distribution in seconds, scaled by `share`."""
        return Uniform(self.low * share / 1000, self.high * share / 1000)


class NormalSection(ConfigSection):
    """Normal distribution with a lower bound."""

    distribution: Literal["normal"]
    """normal"""
    mean: Milliseconds
    """Mean, in milliseconds."""
    std: Milliseconds
    """Standard deviation, in milliseconds."""
    floor: Milliseconds = 0.0
    """Lowest value, in milliseconds."""

    def latency(self, share: float) -> Latency:
        """Return the distribution in seconds, scaled by `share`."""
        return Normal(self.mean * share / 1000, self.std * share / 1000, self.floor * share / 1000)


class LogNormalSection(ConfigSection):
    """Lognormal distribution above a floor."""

    distribution: Literal["lognormal"]
    """lognormal"""
    median: Milliseconds
    """Median, in milliseconds, floor included."""
    sigma: Annotated[float, Field(ge=0)]
    """Standard deviation of the logarithm of the part above the floor."""
    floor: Milliseconds = 0.0
    """Lowest value, in milliseconds."""

    def latency(self, share: float) -> Latency:
        """Return the distribution in seconds, scaled by `share`."""
        above = max(0.0, self.median - self.floor)
        return LogNormal(above * share / 1000, self.sigma, self.floor * share / 1000)


class ParetoSection(ConfigSection):
    """Pareto distribution, which has a heavy tail."""

    distribution: Literal["pareto"]
    """pareto"""
    scale: Annotated[float, Field(gt=0)]
    """Lowest value, in milliseconds."""
    alpha: Annotated[float, Field(gt=0)]
    """Exponent of the tail; a larger one falls faster."""
    ceiling: Annotated[float, Field(gt=0)] | None = None
    """Highest value, in milliseconds."""

    def latency(self, share: float) -> Latency:
        """Return the distribution in seconds, scaled by `share`."""
        most = math.inf if self.ceiling is None else self.ceiling * share / 1000
        return Pareto(self.scale * share / 1000, self.alpha, most)


class EmpiricalSection(ConfigSection):
    """Distribution of measured latencies."""

    distribution: Literal["empirical"]
    """empirical"""
    values: Annotated[list[Milliseconds], Field(min_length=1)]
    """Measurements in milliseconds, in any order."""

    def latency(self, share: float) -> Latency:
        """Return the distribution in seconds, scaled by `share`."""
        return Empirical.of(value * share / 1000 for value in self.values)


def _spelt_out(given: Any) -> Any:
    """Return a number, or the two bounds of a uniform distribution, as the distribution that they stand for."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return {"distribution": "uniform", "low": given, "high": given}
    if isinstance(given, list) and len(given) == 2:
        return {"distribution": "uniform", "low": given[0], "high": given[1]}
    if isinstance(given, dict | ConfigSection):
        return given
    raise ValueError(
        "expected milliseconds, [low, high], or a distribution like {distribution: normal, mean: 40, std: 5}"
    )


Latencies = Annotated[
    UniformSection | NormalSection | LogNormalSection | ParetoSection | EmpiricalSection,
    Field(discriminator="distribution"),
    BeforeValidator(_spelt_out),
]
"""Milliseconds: a number, the two bounds of a uniform distribution, or a distribution with its parameters."""


class PathSection(ConfigSection):
    """One direction of a link. Omitted values are those of the profile."""

    latency_ms: Latencies | None = None
    """One-way latency, in milliseconds."""
    bandwidth_mbit: Mbit | None = None
    """Megabits (10⁶) per second."""
    loss: Share | None = None
    """Share of packets that is lost."""
    burst: Burst | None = None
    """Mean length of a run of losses; 1 = independent."""
    queue_bytes: BytesOrZero | None = None
    """Queue for the bandwidth in bytes; 0 = 100 ms worth of it."""
    congestion_control: CongestionControl | None = None
    """Congestion control of the sending host (loss model transport): cubic, reno or bbr."""


class ProfileSection(ConfigSection):
    """Profile of a link. Omitted values are those of `based_on`."""

    trace: str = ""
    """CSV text of a trace to replay, which replaces all other values."""

    based_on: str = "direct"
    """Shipped profile, or one defined earlier in the file."""
    rtt_ms: Latencies | None = None
    """Round trip in milliseconds; each direction takes half."""
    bandwidth_mbit: Mbit | None = None
    """Value for both directions."""
    loss: Share | None = None
    """Share of packets that is lost."""
    burst: Burst | None = None
    """Mean length of a run of losses; 1 = independent."""
    queue_bytes: BytesOrZero | None = None
    """Queue for the bandwidth in either direction, in bytes."""
    congestion_control: CongestionControl | None = None
    """Congestion control of TCP at both ends: cubic, reno or bbr."""
    jitter_correlation: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Correlation of successive latencies."""
    up: PathSection = PathSection()
    """Different values from the node to the upstream."""
    down: PathSection = PathSection()
    """Different values from the upstream to the node."""

    @model_validator(mode="after")
    def _possible(self) -> "ProfileSection":
        """Check that loss and burst are possible together, and that the trace is valid."""
        try:
            self.profile("", lambda _: PROFILES["direct"])
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def profile(self, name: str, find: Callable[[str], Profile]) -> Profile:
        """Return the profile under `name`; `find` returns the one that it is based on.

        Raises:
            UnknownName: there is none of that name.
            ValueError: the figures contradict one another.
        """
        if self.trace:
            return parse_trace(self.trace, "trace").profile(name)
        base = find(self.based_on)
        correlation = base.jitter_correlation if self.jitter_correlation is None else self.jitter_correlation
        return Profile(name, self._path(base.up, self.up), self._path(base.down, self.down), correlation)

    def _path(self, base: Path, own: PathSection) -> Path:
        latency = base.latency
        if own.latency_ms is not None:
            latency = own.latency_ms.latency(1.0)
        elif self.rtt_ms is not None:
            latency = self.rtt_ms.latency(0.5)
        return replace(
            base,
            latency=latency,
            bandwidth_mbit=_first(own.bandwidth_mbit, self.bandwidth_mbit, base.bandwidth_mbit),
            loss=Loss(_first(own.loss, self.loss, base.loss.mean), _first(own.burst, self.burst, base.loss.burst)),
            queue_bytes=int(_first(own.queue_bytes, self.queue_bytes, base.queue_bytes)),
            congestion_control=own.congestion_control or self.congestion_control or base.congestion_control,
        )


class ProfilesFile(ConfigSection):
    """Content of a profile file."""

    profiles: dict[ProfileName, ProfileSection] = Field(min_length=1)
    """Profiles by name."""


def load_profiles(file: FilePath) -> dict[str, Profile]:
    """Return the profiles of a YAML file, or of a CSV file its trace as a profile named after the file.

    Raises:
        ConfigError: it cannot be read, or does not hold; file, line and key are named.
    """
    text = read_text(file)
    return profiles_of(text, file)


def profiles_of(text: str, file: FilePath) -> dict[str, Profile]:
    """Return the profiles in the text of a file; a trace in CSV is one profile named after the file.

    Raises:
        ConfigError: as `load_profiles`.
    """
    if file.suffix == ".csv":
        try:
            check_profile_name(file.stem)
        except ValueError as error:
            raise ConfigError(f"{shown(file)}: {error}; rename the file") from error
        return {file.stem: parse_trace(text, str(file)).profile(file.stem)}
    return parse_profiles(text, str(file))


def parse_profiles(text: str, name: str) -> dict[str, Profile]:
    """Return the profiles in a YAML text.

    Raises:
        ConfigError: as `load_profiles`.
    """
    sections = parse_yaml(ProfilesFile, text, name).profiles
    try:
        return build_profiles(sections)
    except UnknownName as error:
        broken = next(key for key, section in sections.items() if section.based_on == error.name)
        raise fault(text, name, ("profiles", broken, "based_on"), str(error)) from error


def build_profiles(sections: Mapping[str, ProfileSection]) -> dict[str, Profile]:
    """Return the profiles of sections, in order.

    Raises:
        UnknownName: one is based on an unknown profile.
    """
    built: dict[str, Profile] = {}
    for name, section in sections.items():
        built[name] = section.profile(name, partial(find_profile, custom=built))
    return built


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
