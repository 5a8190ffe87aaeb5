"""Advice about BBR, against the link model itself: other seeds, and transfers that are offered piece by piece."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hypergpu.cli.path_advice import LEAST_GAIN, find_path, path_gains
from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.profiles import Profile
from hypergpu.netsim_proxy.link.transfer import plain_profile

Cli = Callable[..., Any]
NBYTES = 4_000_000
SEEDS = range(100, 112)


def seconds(profile: Profile, direction: Direction, control: CongestionControl, seed: int) -> float:
    """Return the seconds of a second message on one connection."""
    link = Link("n", profile, seed, loss_model=LossModel.TRANSPORT, congestion_control=control)
    now = took = 0.0
    for _ in range(2):
        rpc, begun, left, arrived = link.begin(now), now, NBYTES, now
        while left:
            piece = min(left, 65_536)
            left -= piece
            outcome = link.offer(now, direction, piece, rpc, end=not left)
            assert isinstance(outcome, Deliver)
            arrived, now = outcome.at, max(now, link.room_at(now, direction))
        took, now = arrived - begun, arrived + 0.005
    return took


@pytest.mark.parametrize(
    ("rtt_ms", "mbit", "loss", "gains"),
    [
        (100, 50, 0.01, True),
        (150, 50, 0.001, True),
        (200, 100, 0.03, True),
        (20, 10, 0.0, False),
        (10, 20, 0.001, False),
    ],
)
def test_the_advice_is_true_in_the_simulator(rtt_ms: float, mbit: float, loss: float, gains: bool) -> None:
    profile = plain_profile(rtt_ms, mbit, loss)
    for gain in path_gains(profile, NBYTES):
        assert gain.is_real is gains
        assert ("run `sysctl" in str(gain)) is gains
        real = {
            control: sum(seconds(profile, gain.direction, control, seed) for seed in SEEDS) / len(SEEDS)
            for control in (CongestionControl.CUBIC, CongestionControl.BBR)
        }
        assert gain.bbr_seconds == pytest.approx(real[CongestionControl.BBR], rel=0.3)
        if gains:
            assert 1 - real[CongestionControl.BBR] / real[CongestionControl.CUBIC] >= LEAST_GAIN


def test_it_names_the_host_that_sends() -> None:
    up, down = path_gains(plain_profile(150, 50, 0.001), NBYTES)
    assert "on the node's host, which sends" in str(up)
    assert "on the coordinator's host, which sends" in str(down)


def test_where_many_connections_fill_the_line_bbr_gains_nothing_more() -> None:
    """16 connections with CUBIC carry as much here, so that a change of the hosts is not advised."""
    for gain in path_gains(plain_profile(20, 50, 0.005), 20_000_000):
        assert gain.cubic_seconds > 1.5 * gain.bbr_seconds
        assert not gain.is_real


def test_a_recording_counts_by_its_means(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "office.csv"
    file.write_text("seconds,rtt_ms,loss,up_mbit,down_mbit\n0,100,0.02,40,80\n10,200,0.0,60,120\n")
    path = find_path(str(file))
    assert (path.up.loss.mean, path.up.bandwidth_mbit, path.down.bandwidth_mbit) == (0.01, 50, 100)
    assert path.up.latency.at(0.5) == pytest.approx(0.075)
    checks = json.loads(cli("doctor", "--path", str(file), "--bytes", "1000000", "--json").out)
    told = [check["found"] for check in checks if check["name"] == "path"]
    assert [text.partition(" ")[0] for text in told] == ["up", "down"]
    assert "150 ms, 1.0 % loss, 50.0 Mbit/s" in told[0]
    assert "did you mean 'poor'" in cli("doctor", "--path", "por").err
