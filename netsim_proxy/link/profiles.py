"""Profiles: latency, bandwidth, packet loss and queue of both directions of a link.

The five standard profiles have the round trips and losses of the specification. Their bandwidths are our
choice: usual offers of the kind of access with such round trips (perfect: 10 GbE in a data centre; good: fibre;
average: cable; poor: DSL or a busy cell; unstable: the edge of a cell). `direct` adds no delay, loss or limit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypergpu.common.errors import UnknownName
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.distributions import Latency, LogNormal, Uniform

if TYPE_CHECKING:
    from hypergpu.netsim_proxy.link.traces import Trace

MBIT_BYTES: Final = 125_000.0
"""Bytes per second of one megabit per second."""
_LEAST_MBIT: Final = 1e-6
_MOST_BURST: Final = 100_000
_QUEUE_SECONDS: Final = 0.1
_QUEUE_FLOOR: Final = 64 << 10
_QUEUE_CEILING: Final = 4 << 20


def check_bandwidth(mbit: float) -> None:
    """Check a bandwidth.

    Raises:
        ValueError: it is below 1 bit/s, or no number.
    """
    if not mbit >= _LEAST_MBIT:
        raise ValueError(f"bandwidth must be above 0, and 1 bit/s at least, not {mbit} Mbit/s")


def default_queue_bytes(bytes_per_second: float) -> int:
    """Return the capacity of a queue whose size was not given: 100 ms of its bandwidth, within bounds."""
    return int(min(max(bytes_per_second * _QUEUE_SECONDS, _QUEUE_FLOOR), _QUEUE_CEILING))


@dataclass(frozen=True, slots=True)
class Loss:
    """Share of packets lost, and mean length of a run of losses (1 = independent).

    Longer runs come from the two-state chain of Gilbert (1960), Elliott's with nothing lost in its good state: bad ends
    with probability 1 / `burst`, good with mean / (burst × (1 - mean)), so that both figures hold in the long run.
    """

    mean: float = 0.0
    burst: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= 1:
            raise ValueError(f"loss must be between 0 and 1, not {self.mean}")
        if not 1 <= self.burst <= _MOST_BURST:
            raise ValueError(f"a mean burst is 1 to {_MOST_BURST:,} long, not {self.burst:g}")
        if self.mean < 1 and self.entry > 1:
            raise ValueError(f"bursts of {self.burst} cannot make up a mean loss of {self.mean}: make them longer")

    @property
    def entry(self) -> float:
        """Probability that a burst begins after a packet that passed."""
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
    """Packet loss (loss model `transport`), or loss of RPCs (`rpc`), half of them on each path."""
    queue_bytes: int = 0
    """Queue for the bandwidth in bytes; 0 = 100 ms worth of it, between 64 KiB and 4 MiB."""
    congestion_control: CongestionControl | None = None
    """Congestion control of the sending host, for connections that open from now on; None = that of the link."""

    def __post_init__(self) -> None:
        check_bandwidth(self.bandwidth_mbit)

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth in bytes per second."""
        return self.bandwidth_mbit * MBIT_BYTES

    @property
    def queue_limit(self) -> int:
        """Capacity of the queue in bytes."""
        return self.queue_bytes or default_queue_bytes(self.bytes_per_second)


@dataclass(frozen=True, slots=True)
class Distance:
    """A constant round trip between the regions of a node and its upstream."""

    round_trip_ms: float
    route: str
    """Its two ends, as in `from eu-west to us-east`."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Both directions of a link, and how much a round trip resembles the one before."""

    name: str
    up: Path
    """From the node to the upstream."""
    down: Path
    jitter_correlation: float = 0.0
    """Correlation of successive draws, in [0, 1); applied to normal scores, which keeps the distribution."""
    trace: "Trace | None" = None
    """Recording to replay; the other fields describe its start."""
    distance: Distance | None = None
    """Part of the latencies of `up` and `down` that a region has added."""

    def __post_init__(self) -> None:
        if not 0 <= self.jitter_correlation < 1:
            raise ValueError(f"jitter correlation must be in [0, 1), not {self.jitter_correlation}")

    @property
    def loss(self) -> float:
        """Share of RPCs lost in the `rpc` loss model."""
        return (self.up.loss.mean + self.down.loss.mean) / 2

    @property
    def local_name(self) -> str:
        """Name without the route of the distance."""
        return self.name if self.distance is None else self.name.removesuffix(self.distance.route).rstrip()

    def with_congestion_control(self, control: CongestionControl) -> "Profile":
        """Return this profile with senders of one congestion control at both ends."""
        up, down = (replace(path, congestion_control=control) for path in (self.up, self.down))
        return replace(self, up=up, down=down)

    def with_up_of(self, other: "Profile") -> "Profile":
        """Return this profile with the uplink of another."""
        return replace(self, name=f"{other.name} up, {self.name} down", up=other.up)


def symmetric(name: str, rtt_ms: tuple[float, float], loss: float, *, down_mbit: float, up_mbit: float) -> Profile:
    """Return a profile with uniform round trips between two bounds, half of each on either path."""
    latency = Uniform(rtt_ms[0] / 2000, rtt_ms[1] / 2000)
    return Profile(name, up=Path(latency, up_mbit, Loss(loss)), down=Path(latency, down_mbit, Loss(loss)))


def _access(name: str, rtt_ms: tuple[float, float], loss: float, *, down_mbit: float, up_mbit: float) -> Profile:
    """Return an access line with this least and median round trip; the excess over the least is lognormal."""
    least, median = rtt_ms
    latency = LogNormal((median - least) / 2000, sigma=0.6, floor=least / 2000)
    up, down = Path(latency, up_mbit, Loss(loss)), Path(latency, down_mbit, Loss(loss))
    return Profile(name, up, down, jitter_correlation=0.5)


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
"""The standard profiles."""

LAST_MILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            _access("fibre", (4, 10), 0.0005, down_mbit=500, up_mbit=500),
            _access("cable", (10, 20), 0.001, down_mbit=200, up_mbit=20),
            _access("dsl", (20, 35), 0.003, down_mbit=25, up_mbit=3),
            _access("4g", (25, 40), 0.005, down_mbit=29, up_mbit=6),
            _access("5g", (15, 30), 0.003, down_mbit=166, up_mbit=21),
            _access("satellite", (25, 45), 0.01, down_mbit=105, up_mbit=15),
            _access("geostationary", (550, 620), 0.005, down_mbit=50, up_mbit=3),
        )
    }
)
"""Access lines between a home, or a phone, and the nearest data centre: round figures.

Fibre, cable and DSL: the order of latencies and losses of fixed lines in the FCC's "Measuring Broadband America",
Thirteenth Report (2024, data of 2022), and speeds that are commonly sold. 4G: medians of US mobile networks in Q2 2020,
29 and 5.7 Mbit/s, 31 to 39 ms (Ookla, Speedtest US market report). 5G: worldwide medians of Q3 2021, 166 and 21 Mbit/s
(Ookla, "The state of 5G worldwide"). Satellite: Starlink in the US in 2025, 105 Mbit/s and 45 ms (Ookla).
Geostationary: light alone takes 480 ms there and back, twice. The losses of radio links and the spreads are ours.
"""


def find_profile(name: str, custom: Mapping[str, Profile] | None = None) -> Profile:
    """Return a profile by name: a custom one, a standard one or a last mile.

    Raises:
        UnknownName: no such profile; the message names the nearest.
    """
    known = {**LAST_MILES, **PROFILES, **(custom or {})}
    if name not in known:
        raise UnknownName("profile", name, known)
    return known[name]
