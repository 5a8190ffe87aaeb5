"""Advice of `hypergpu doctor` about a path: whether senders with BBR would shorten its transfers, by the link model."""

from dataclasses import dataclass, replace
from pathlib import Path as File
from statistics import fmean
from typing import Final

from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.text import duration, mbit, percent
from hypergpu.netsim_proxy.config.profile_file import load_profiles
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.link.profiles import Profile, find_profile
from hypergpu.netsim_proxy.link.traces import Row, Trace
from hypergpu.netsim_proxy.link.transfer import transfer_times

LEAST_GAIN: Final = 0.2
"""Share of the time that BBR must save to be worth a change of a host."""
_SAMPLES: Final = 6
_SENDERS: Final = {Direction.UP: "the node's host", Direction.DOWN: "the coordinator's host"}
_NAMES: Final = {Direction.UP: "up", Direction.DOWN: "down"}
HOW_TO: Final = "sysctl -w net.core.default_qdisc=fq net.ipv4.tcp_congestion_control=bbr"


@dataclass(frozen=True, slots=True)
class PathGain:
    """Seconds of one transfer over a path, on open connections."""

    direction: Direction
    profile: Profile
    nbytes: int
    cubic_seconds: float
    """On one connection with CUBIC."""
    striped_seconds: float
    """The same on as many connections as a transfer may have."""
    bbr_seconds: float
    """On one connection with BBR."""

    @property
    def saved(self) -> float:
        """Share of the time that BBR saves, compared with the faster of both."""
        return 1.0 - self.bbr_seconds / min(self.cubic_seconds, self.striped_seconds)

    @property
    def is_real(self) -> bool:
        """True if BBR saves enough."""
        return self.saved >= LEAST_GAIN

    def __str__(self) -> str:
        path = self.profile.up if self.direction is Direction.UP else self.profile.down
        trip = 1000 * (self.profile.up.latency.at(0.5) + self.profile.down.latency.at(0.5))
        line = f"{trip:.0f} ms, {percent(path.loss.mean)} loss, {mbit(path.bandwidth_mbit)} Mbit/s"
        times = (
            f"{self.nbytes / 1e6:g} MB take {duration(self.cubic_seconds)} with CUBIC on one connection, "
            f"{duration(self.striped_seconds)} on {MAX_CONNECTIONS}, and {duration(self.bbr_seconds)} with BBR on one"
        )
        if self.is_real:
            verdict = f"BBR saves {self.saved:.0%}: on {_SENDERS[self.direction]}, which sends, run `{HOW_TO}`"
        else:
            verdict = "BBR would gain little"
        return f"{_NAMES[self.direction]} ({line}): {times}; {verdict}"


def find_path(name: str) -> Profile:
    """Return a path by the name of a shipped profile, or by a file of `hypergpu trace record`.

    A recording counts by its means.

    Raises:
        UnknownName: no such profile; the message names the nearest.
        ConfigError: the file cannot be read.
    """
    if not name.endswith(".csv"):
        return find_profile(name)
    (profile,) = load_profiles(File(name)).values()
    return _mean(profile.trace, profile.name) if profile.trace is not None else profile


def path_gains(profile: Profile, nbytes: int, seed: int = 0) -> list[PathGain]:
    """Predict transfers over a path in both directions."""
    return [_gain(profile, direction, nbytes, seed) for direction in Direction]


def _gain(profile: Profile, direction: Direction, nbytes: int, seed: int) -> PathGain:
    def seconds(control: CongestionControl, connections: int) -> float:
        times = transfer_times(
            profile.with_congestion_control(control),
            nbytes,
            samples=_SAMPLES,
            seed=seed,
            direction=direction,
            connections=connections,
        )
        return times["warm"].mean_seconds

    cubic, striped = (seconds(CongestionControl.CUBIC, connections) for connections in (1, MAX_CONNECTIONS))
    return PathGain(direction, profile, nbytes, cubic, striped, seconds(CongestionControl.BBR, 1))


def _mean(trace: Trace, name: str) -> Profile:
    rows = trace.rows
    row = replace(
        rows[0],
        rtt_ms=fmean(row.rtt_ms for row in rows),
        loss=fmean(row.loss for row in rows),
        up_mbit=fmean(row.up_mbit for row in rows),
        down_mbit=fmean(row.down_mbit for row in rows),
    )
    assert isinstance(row, Row)
    return row.profile(name)
