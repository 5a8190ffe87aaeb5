"""What a link is like while nothing happens to it: latency, bandwidth, loss and queue of its two paths.

The five standard profiles have the round trips and losses of the specification. Their bandwidths are ours: what the
kind of access that shows such round trips usually sells, up and down (perfect: 10 GbE in a data centre; good: fibre;
average: cable; poor: DSL or a busy cell; unstable: the edge of a cell). `direct` adds nothing at all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from common.errors import UnknownName
from netsim_proxy.link.distributions import Latency, Uniform

_MBIT_BYTES: Final = 125_000.0
_QUEUE_SECONDS: Final = 0.1
_QUEUE_FLOOR: Final = 64 << 10
_QUEUE_CEILING: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Loss:
    """What share is lost, and in runs of what mean length (1 = independently of one another).

    Longer runs come from the two-state chain of Gilbert (1960), Elliott's with nothing lost in its good state: bad ends
    with probability 1 / `burst`, good with mean / (burst × (1 - mean)), so that both figures hold in the long run.
    """

    mean: float = 0.0
    burst: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= 1:
            raise ValueError(f"loss must be between 0 and 1, not {self.mean}")
        if self.burst < 1:
            raise ValueError(f"a mean burst is at least 1 long, not {self.burst}")
        if self.mean < 1 and self.entry > 1:
            raise ValueError(f"bursts of {self.burst} cannot make up a mean loss of {self.mean}: make them longer")

    @property
    def entry(self) -> float:
        """The probability that a burst begins after something that was not lost."""
        if self.burst == 1 or self.mean == 1:
            return self.mean
        return self.mean / (self.burst * (1.0 - self.mean))


@dataclass(frozen=True, slots=True)
class Path:
    """One direction of a link."""

    latency: Latency
    """One way."""
    bandwidth_mbit: float = math.inf
    """Megabits (10⁶) per second; infinite = no limit."""
    loss: Loss = Loss()
    """Of packets in the `transport` loss model. Of RPCs in `rpc`: each path has its half of them."""
    queue_bytes: int = 0
    """What may wait for the bandwidth; 0 = 100 ms worth of it, between 64 KiB and 4 MiB."""

    def __post_init__(self) -> None:
        if not self.bandwidth_mbit > 0:
            raise ValueError(f"bandwidth must be above 0, not {self.bandwidth_mbit} Mbit/s")

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth in bytes."""
        return self.bandwidth_mbit * _MBIT_BYTES

    @property
    def queue_limit(self) -> int:
        """The bound of the queue in bytes."""
        if self.queue_bytes:
            return self.queue_bytes
        return int(min(max(self.bytes_per_second * _QUEUE_SECONDS, _QUEUE_FLOOR), _QUEUE_CEILING))


@dataclass(frozen=True, slots=True)
class Profile:
    """Both directions of a link, and how much a round trip resembles the one before."""

    name: str
    up: Path
    """From the node to the upstream."""
    down: Path
    jitter_correlation: float = 0.0
    """Of successive draws, in [0, 1): of the normal scores, so that the distribution stays what it is."""

    def __post_init__(self) -> None:
        if not 0 <= self.jitter_correlation < 1:
            raise ValueError(f"jitter correlation must be in [0, 1), not {self.jitter_correlation}")

    @property
    def loss(self) -> float:
        """The share of RPCs that is lost in the `rpc` loss model."""
        return (self.up.loss.mean + self.down.loss.mean) / 2

    def with_up_of(self, other: "Profile") -> "Profile":
        """This profile, with the path up of another."""
        return replace(self, name=f"{other.name} up, {self.name} down", up=other.up)


def symmetric(name: str, rtt_ms: tuple[float, float], loss: float, *, down_mbit: float, up_mbit: float) -> Profile:
    """Round trips evenly between two bounds, half of each on either path."""
    latency = Uniform(rtt_ms[0] / 2000, rtt_ms[1] / 2000)
    return Profile(name, up=Path(latency, up_mbit, Loss(loss)), down=Path(latency, down_mbit, Loss(loss)))


PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            symmetric("perfect", (0, 1), 0.0, down_mbit=10_000, up_mbit=10_000),
            symmetric("good", (10, 50), 0.001, down_mbit=1_000, up_mbit=500),
            symmetric("average", (50, 150), 0.01, down_mbit=200, up_mbit=50),
            symmetric("poor", (150, 300), 0.05, down_mbit=50, up_mbit=10),
            symmetric("unstable", (50, 500), 0.10, down_mbit=20, up_mbit=5),
            symmetric("direct", (0, 0), 0.0, down_mbit=math.inf, up_mbit=math.inf),
        )
    }
)
"""The profiles that need no file."""


def find_profile(name: str, custom: Mapping[str, Profile] | None = None) -> Profile:
    """A profile by name; custom ones come first.

    Raises:
        UnknownName: there is none; the message names the nearest.
    """
    known = {**PROFILES, **(custom or {})}
    if name not in known:
        raise UnknownName("profile", name, known)
    return known[name]
