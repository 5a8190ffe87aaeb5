import json
import math
from pathlib import Path as File
from statistics import fmean, median
from typing import Any

import pytest

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.cubic import CubicWindow
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.flows import open_flow
from hypergpu.netsim_proxy.link.outcomes import Fail
from hypergpu.netsim_proxy.link.profiles import PROFILES, Loss, Path
from hypergpu.netsim_proxy.link.tcp import PACKET_BYTES, SEGMENT_BYTES, TcpFlow
from hypergpu.netsim_proxy.link.transfer import plain_profile, transfer_times
from hypergpu.netsim_proxy.link.window_flow import WindowFlow
from tests.netsim_proxy.link.pieces import sent_in_pieces

LOSSES = File(__file__).parents[2] / "data" / "tcp_losses.jsonl"
"""Two transfers each of 200 kB by Linux 6.18 over 150 ms and 20 Mbit/s that lost the packets of these numbers."""
PATTERNS = File(__file__).parents[2] / "data" / "tcp_patterns.jsonl"
"""The same on three lines, where numbers count first transmissions only and no packet that is sent again is lost."""
MEASURED = File(__file__).parents[2] / "data" / "tcp_transfers.jsonl"
"""Transfers of Linux's TCP (CUBIC) over an emulated link: seconds of a first message, and of one that follows."""


def errors(least: float, most: float) -> list[float]:
    """Of the mean, for each measured line with such a loss, on cold and warm connections."""
    out = []
    for line in MEASURED.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        if least <= row["loss"] <= most:
            link = plain_profile(row["rtt_ms"], row["bandwidth_mbit"], row["loss"], queue_bytes=row["queue_bytes"])
            times = transfer_times(link, row["bytes"], samples=1 if row["loss"] == 0 else 120, seed=9)
            for kind, seconds in (("cold", row["cold_s"]), ("warm", row["warm_s"])):
                out.append(abs(times[kind].mean_seconds / fmean(seconds) - 1))
    return out


def test_a_path_that_loses_all_still_comes_to_an_end() -> None:
    summary = transfer_times(plain_profile(40, loss=1.0), 1000, samples=2)["cold"]
    assert 5 < summary.mean_seconds < math.inf


def test_it_takes_as_long_as_linux_at_low_loss() -> None:
    assert median(errors(0.0, 0.001)) <= 0.05


def test_it_takes_as_long_as_linux_at_high_loss() -> None:
    assert median(errors(0.01, 0.03)) <= 0.15


def test_the_default_queue_is_that_of_the_measurements() -> None:
    for line in MEASURED.read_text().splitlines():
        row = json.loads(line)
        assert plain_profile(row["rtt_ms"], row["bandwidth_mbit"]).up.queue_bytes == row["queue_bytes"]


def flow(
    rtt_ms: float, mbit: float, loss: float = 0.0, queue: int = 0, control: CongestionControl = CongestionControl.CUBIC
) -> TcpFlow:
    one_way = rtt_ms / 2000
    return open_flow(Path(Uniform(one_way, one_way), mbit, Loss(loss), queue), KeyedRandom(1, "test"), control)


def test_slow_start_doubles_from_ten_packets() -> None:
    """Without a limit of bandwidth, each round trip delivers twice as much as the one before."""
    for packets, round_trips in ((10, 0), (30, 1), (70, 2), (150, 3)):
        assert flow(100, math.inf).send(0.0, packets * 1448, 0.1, 0.05) == pytest.approx(0.05 + 0.1 * round_trips)
        assert flow(100, math.inf).send(0.0, packets * 1448 + 1, 0.1, 0.05) == pytest.approx(0.15 + 0.1 * round_trips)


def test_a_warm_connection_goes_on_with_its_window_and_an_idle_one_begins_again() -> None:
    line = flow(100, math.inf)
    line.send(0.0, 300 * 1448, 0.1, 0.05)
    assert line.send(5.0, 10 * 1448, 0.1, 0.05) == pytest.approx(5.05)
    line = flow(100, math.inf)
    line.send(0.0, 300 * 1448, 0.1, 0.05)
    assert line.send(0.66, 300 * 1448, 0.1, 0.05) == pytest.approx(0.71)
    late = flow(100, math.inf)
    late.send(0.0, 300 * 1448, 0.1, 0.05)
    assert late.send(100.0, 300 * 1448, 0.1, 0.05) > 100.25


def test_the_bandwidth_is_used_in_full_where_nothing_is_lost() -> None:
    nbytes = 10_000_000
    took = flow(40, 100, queue=500_000).send(0.0, nbytes, 0.04, 0.02)
    ideal = nbytes * 1500 / 1448 * 8 / 100e6
    assert ideal < took < ideal + 0.25


@pytest.mark.parametrize("control", [CongestionControl.CUBIC, CongestionControl.RENO])
def test_more_loss_takes_longer(control: CongestionControl) -> None:
    means = [
        fmean(
            open_flow(Path(Uniform(0.02, 0.02), 20, Loss(loss)), KeyedRandom(1, "t", i), control).send(
                0.0, 1_000_000, 0.04, 0.02
            )
            for i in range(100)
        )
        for loss in (0.0, 0.003, 0.01, 0.03, 0.1)
    ]
    assert means == sorted(means)
    assert means[-1] > 4 * means[0]


def test_a_packet_alone_that_is_lost_waits_for_the_timeout() -> None:
    times = [
        open_flow(Path(Uniform(0.02, 0.02), 20, Loss(0.3)), KeyedRandom(1, "t", i)).send(0.0, 100, 0.04, 0.02)
        for i in range(300)
    ]
    quick = [time for time in times if time < 0.1]
    assert len(quick) / 300 == pytest.approx(0.7, abs=0.08)
    assert min(time for time in times if time > 0.1) > 0.25


@pytest.mark.parametrize(("rtt", "mbit", "loss"), [(40, 100, 0.0), (150, 100, 0.0), (40, 20, 0.01), (40, 100, 0.03)])
def test_pieces_take_about_as_long_as_the_whole(rtt: float, mbit: float, loss: float) -> None:
    def took(piece: int, seed: int) -> float:
        link = Link("n", plain_profile(rtt, mbit, loss), seed, loss_model=LossModel.TRANSPORT)
        return sent_in_pieces(link, 2_000_000, piece)

    count = 40 if loss else 1
    whole = fmean(took(2_000_000, seed) for seed in range(count))
    for piece in (1 << 20, 1 << 16, 1 << 14):
        assert fmean(took(piece, seed) for seed in range(count)) == pytest.approx(whole, rel=0.15)


def test_flows_share_the_bandwidth_of_their_link() -> None:
    link = Link("n", plain_profile(10, 80), 0, loss_model=LossModel.TRANSPORT)
    rpcs = [link.begin(0.0, connection) for connection in range(4)]
    now, last = 0.0, 0.0
    for _ in range(40):
        for rpc in rpcs:
            outcome = link.offer(now, Direction.UP, 65_536, rpc)
            assert isinstance(outcome, Deliver)
            last = max(last, outcome.at)
    assert last >= 160 * 65_536 / 10e6


def test_a_transfer_that_loses_rpcs_says_how_many() -> None:
    times = transfer_times(plain_profile(40, 100, 0.5), 1000, loss_model=LossModel.RPC, samples=400, seed=1)
    assert times["cold"].lost == pytest.approx(0.25, abs=0.07)
    assert times["cold"].mean_seconds == pytest.approx(0.02, abs=0.001)
    none = transfer_times(plain_profile(40, 100, 1.0), 1000, loss_model=LossModel.RPC, samples=1, seed=1)["cold"]
    assert none.lost in (0.0, 1.0)


def test_a_transfer_over_a_profile_and_its_seed() -> None:
    first = transfer_times(PROFILES["average"], 100_000, samples=20, seed=5)
    assert first == transfer_times(PROFILES["average"], 100_000, samples=20, seed=5)
    assert first != transfer_times(PROFILES["average"], 100_000, samples=20, seed=6)
    assert first["cold"].p50_seconds <= first["cold"].p90_seconds
    assert first["cold"].lost == 0


def test_rpcs_do_not_fail_in_the_transport_model() -> None:
    link = Link("n", plain_profile(40, 20, 0.2), 3, loss_model=LossModel.TRANSPORT)
    outcomes = [link.offer(10.0 * i, Direction.UP, 3000, link.begin(10.0 * i), end=True) for i in range(100)]
    assert not any(isinstance(outcome, Fail) for outcome in outcomes)


def test_a_short_packet_takes_its_own_share_of_the_bandwidth() -> None:
    """Twelve frames of 13 bytes occupy 1 Mbit/s for 6 ms; twelve whole packets would take 144 ms."""
    line = flow(100, 1)
    seconds = [line.send(0.0, 13, 0.1, 0.05) for _ in range(10)]
    assert seconds == pytest.approx([0.05 + (number + 1) * (13 + 52) * 8e-6 for number in range(10)])
    assert line.send(0.0, 10_000, 0.1, 0.05, more=True) == pytest.approx(0.15 + (10_000 + 7 * 52) * 8e-6, abs=1e-3)


def test_a_piece_fills_the_last_packet_of_the_one_before_it() -> None:
    line, whole = flow(100, 1), flow(100, 1)
    line.send(0.0, 1000, 0.1, 0.05, more=True)
    line.send(0.0, 1000, 0.1, 0.05, more=True)
    assert line.send(0.0, 896, 0.1, 0.05) == pytest.approx(whole.send(0.0, 2 * 1448, 0.1, 0.05))
    assert line.busy_until == pytest.approx(0.024)


def test_a_window_that_little_is_sent_in_is_taken_back_before_a_burst_overflows_the_queue() -> None:
    """Small messages keep the connection from falling idle; without them it would begin again from 10 packets."""
    line = flow(100, 10, queue=60_000)
    now = line.send(0.0, 120_000, 0.1, 0.05)
    grown = line._window.packets
    for _ in range(40):
        now += 0.1
        line.send(now, 100, 0.1, 0.05)
    assert grown > 60
    assert 10 <= line._window.packets <= 12


class ChosenLosses:
    """Loses the packets of these numbers, counted over all that pass the bottleneck."""

    def __init__(self, lost: list[int]) -> None:
        self._lost, self._passed = set(lost), 0

    def first_lost(self, packets: int) -> int:
        return next((index for index in range(packets) if self._passed + index in self._lost), packets)

    def take(self, packets: int) -> int:
        begin, self._passed = self._passed, self._passed + packets
        self.trailing = 0
        while self.trailing < packets and self._passed - 1 - self.trailing in self._lost:
            self.trailing += 1
        self.last = max((n - begin for n in self._lost if begin <= n < self._passed - self.trailing), default=0)
        return sum(number in self._lost for number in range(begin, self._passed))


def test_it_takes_as_long_as_linux_when_the_same_packets_are_lost() -> None:
    ratios: dict[str, list[float]] = {"cold": [], "warm": []}
    for line in LOSSES.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        sender = flow(150, 20, queue=375_000)
        sender._loss = ChosenLosses(row["lost"])  # type: ignore[assignment]
        cold = sender.send(0.0, 200_000, 0.15, 0.075)
        warm = sender.send(cold + 0.005, 200_000, 0.15, 0.075) - cold - 0.005
        ratios["cold"].append(cold / row["cold_s"])
        ratios["warm"].append(warm / row["warm_s"])
    for each in ratios.values():
        assert fmean(each) == pytest.approx(1.0, abs=0.05)
        assert median(abs(ratio - 1) for ratio in each) <= 0.05


class FirstLosses(ChosenLosses):
    """Loses packets of these numbers the first time that they are sent."""

    sends_again = False

    def take(self, packets: int) -> int:
        if self.sends_again:
            self.trailing = 0
            return 0
        return super().take(packets)


class MendedFlow(WindowFlow):
    """A flow that loses no packet twice."""

    def _resend(self, *arguments: Any, **named: Any) -> tuple[float, bool]:
        losses: Any = self._loss
        losses.sends_again = True
        try:
            return super()._resend(*arguments, **named)
        finally:
            losses.sends_again = False


def seconds_of(rtt_ms: float, mbit: float, queue: int, nbytes: int, lost: list[int]) -> tuple[float, float]:
    """Return the seconds of a first message and of the next one."""
    path = Path(Uniform(rtt_ms / 2000, rtt_ms / 2000), mbit, Loss(0.0), queue)
    sender = MendedFlow(path, KeyedRandom(1, "test"), CubicWindow())
    sender._loss = FirstLosses(lost)  # type: ignore[assignment]
    cold = sender.send(0.0, nbytes, rtt_ms / 1000, rtt_ms / 2000)
    return cold, sender.send(cold + 0.005, nbytes, rtt_ms / 1000, rtt_ms / 2000) - cold - 0.005


@pytest.mark.parametrize(
    ("line", "cold_error", "warm_error"), [((40, 100), 0.03, 0.04), ((80, 20), 0.025, 0.03), ((20, 50), 0.06, 0.08)]
)
def test_each_pattern_of_losses_takes_as_long_as_in_linux(
    line: tuple[int, int], cold_error: float, warm_error: float
) -> None:
    """The mean error of single transfers; other transfers with as many losses would be far off."""
    errors: dict[str, list[float]] = {"cold": [], "warm": []}
    for text in PATTERNS.read_text().splitlines():
        row: dict[str, Any] = json.loads(text)
        if (row["rtt_ms"], row["bandwidth_mbit"]) == line:
            cold, warm = seconds_of(*line, row["queue_bytes"], row["bytes"], row["lost"])
            errors["cold"].append(abs(math.log(cold / row["cold_s"])))
            errors["warm"].append(abs(math.log(warm / row["warm_s"])))
    assert fmean(errors["cold"]) <= cold_error
    assert fmean(errors["warm"]) <= warm_error


@pytest.mark.parametrize(
    ("lost", "cold", "warm"),
    [
        ([5, 6], 0.101, 0.061),  # a second one is sent again when the next flight is acknowledged
        ([6, 7], 0.101, 0.061),  # a timer of the first: two packets after them arrive
        ([2, 9], 0.101, 0.061),  # the last of a burst is noticed with the next flight
        ([4, 13], 0.101, 0.061),  # the last of all, when the first that was sent again is acknowledged
        ([11, 13], 0.160, 0.037),  # no deliveries free the window for the next message
        ([13], 0.346, 0.022),  # the window is full until the probe is acknowledged
    ],
)
def test_two_losses_are_noticed_apart_as_in_linux(lost: list[int], cold: float, warm: float) -> None:
    """14 packets over 40 ms and 100 Mbit/s, of which 10 are sent at once."""
    took = seconds_of(40, 100, 500_000, 20_000, lost)
    assert took == pytest.approx((cold, warm), abs=0.0025)


def test_connections_share_the_rate_of_a_link_and_each_has_its_own_window() -> None:
    lossy = plain_profile(50, 50, 0.01)
    one, eight = (transfer_times(lossy, 4_000_000, samples=3, seed=1, connections=k)["cold"] for k in (1, 8))
    line_seconds = 4_000_000 / SEGMENT_BYTES * PACKET_BYTES * 8 / 50e6
    assert one.p50_seconds > 8 * line_seconds
    assert line_seconds < eight.p50_seconds < one.p50_seconds / 4
    clean = plain_profile(50, 50)
    one, two = (transfer_times(clean, 20_000_000, samples=1, connections=k)["warm"] for k in (1, 2))
    assert two.mean_seconds == pytest.approx(one.mean_seconds, rel=0.05), "one fills the line"
