import math
from collections.abc import Mapping
from random import Random

import pytest

from hypergpu.netsim_proxy.link.transfer import plain_profile, transfer_times
from hypergpu.simulation.kernel import validation
from hypergpu.simulation.kernel.delay_line import Lane, Line
from hypergpu.simulation.kernel.transfers import Transfer
from hypergpu.simulation.kernel.validation import (
    PREDICTORS,
    Condition,
    KernelValidation,
    line_rate_seconds,
    mathis_seconds,
    slow_start_seconds,
    validate_transfers,
)

ACK, SYN = 16, 2


def packet(
    nbytes: int, *, flags: int = ACK, port: int = 5000, version: int = 4, protocol: int = 6, sequence: int = 0
) -> bytes:
    """Return a packet of IPv4 and TCP, `nbytes` long."""
    head = bytearray(40)
    head[0], head[9] = version << 4, protocol
    head[20:22] = port.to_bytes(2, "big")
    head[24:28] = sequence.to_bytes(4, "big")
    head[32], head[33] = 5 << 4, flags
    return bytes(head) + bytes(nbytes - 40)


def lane(line: Line) -> Lane:
    return Lane(line, 0, 1, Random(1), port_offset=0)


def test_a_packet_takes_its_bytes_at_the_bandwidth_and_half_a_round_trip() -> None:
    direction = lane(Line(rtt_ms=40, bandwidth_mbit=12, queue_bytes=3000))
    assert direction.accept(1.0, packet(1500)) == pytest.approx(1.0 + 0.001 + 0.02)
    assert direction.accept(1.0, packet(750)) == pytest.approx(1.0 + 0.0015 + 0.02)
    assert direction.accept(2.0, packet(1500)) == pytest.approx(2.0 + 0.001 + 0.02)


def test_packets_beyond_the_queue_are_dropped_and_take_no_bandwidth() -> None:
    direction = lane(Line(rtt_ms=40, bandwidth_mbit=12, queue_bytes=3000))
    arrivals = [direction.accept(1.0, packet(1500)) for _ in range(3)]
    assert arrivals == [pytest.approx(1.021), pytest.approx(1.022), None]
    assert direction.accept(1.001, packet(1500)) == pytest.approx(1.023)


def test_connections_share_the_bandwidth_or_each_has_its_own() -> None:
    shared, apart = lane(Line(40, 12, 3000)), lane(Line(40, 12, 3000, shared=False))
    for direction, second in ((shared, 1.022), (apart, 1.021)):
        assert direction.accept(1.0, packet(1500, port=1)) == pytest.approx(1.021)
        assert direction.accept(1.0, packet(1500, port=2)) == pytest.approx(second)


def test_only_tcp_over_ipv4_is_carried() -> None:
    direction = lane(Line(40, 12, 3000))
    assert direction.accept(1.0, packet(100, version=6)) is None
    assert direction.accept(1.0, packet(100, protocol=17)) is None


def test_losses_spare_the_first_packet_of_a_connection() -> None:
    direction = lane(Line(0, 12, 1 << 30, loss=0.25))
    assert all(direction.accept(0.0, packet(40, flags=SYN)) for _ in range(200))
    lost = sum(direction.accept(0.0, packet(40)) is None for _ in range(4000))
    assert lost / 4000 == pytest.approx(0.25, abs=0.02)


def test_chosen_packets_with_data_are_dropped_the_first_time() -> None:
    direction = lane(Line(0, 12, 1 << 30, drops=(frozenset({1, 3}), frozenset({0}))))
    assert direction.accept(0.0, packet(40, port=1)) is not None  # without data
    last = (1 << 32) - 60
    sent = [(1, last), (2, 7), (1, 0), (1, last), (1, 60), (2, 67), (1, 0), (1, 120)]
    arrived = [direction.accept(0.0, packet(100, port=port, sequence=at)) is not None for port, at in sent]
    assert arrived == [True, False, False, True, True, True, True, False]


def test_the_line_rate_counts_headers_and_half_a_round_trip() -> None:
    line = Line(40, 12, 100_000)
    assert line_rate_seconds(line, 1448) == pytest.approx(0.02 + 0.001)
    assert line_rate_seconds(line, 14_480) == pytest.approx(0.02 + 0.01)
    assert line_rate_seconds(line, 724) == pytest.approx(0.02 + (724 + 52) / 1.5e6)


def test_the_formula_of_mathis_limits_the_rate() -> None:
    # sqrt(1.5 / 0.015) = 10 packets in a round trip of 0.1 s: 100 packets a second
    assert mathis_seconds(Line(100, 100, 100_000, loss=0.015), 144_800) == pytest.approx(0.05 + 1.0)
    fast = Line(100, 1.2, 100_000, loss=1e-6)
    assert mathis_seconds(fast, 144_800) == line_rate_seconds(fast, 144_800)
    assert mathis_seconds(Line(40, 12, 100_000), 144_800) == line_rate_seconds(Line(40, 12, 100_000), 144_800)


def test_a_slow_start_doubles_from_ten_packets() -> None:
    line = Line(100, 1200, 100_000)
    for packets, trips in ((10, 0), (11, 1), (30, 1), (31, 2), (70, 2), (71, 3)):
        left = packets - 10 * (2**trips - 1)
        expected = trips * 0.1 + 0.05 + left * 1500 / 150e6
        assert slow_start_seconds(line, packets * 1448, "cold") == pytest.approx(expected)
    assert slow_start_seconds(line, 144_800, "warm") == line_rate_seconds(line, 144_800)


def test_a_slow_start_ends_at_the_window_of_the_line_or_of_the_losses() -> None:
    # 12 Mbit/s x 0.02 s = 20 packets
    assert slow_start_seconds(Line(20, 12, 100_000), 144_800, "cold") == pytest.approx(0.02 + 0.01 + 0.09)
    # no window beyond 10 packets
    lossy = Line(100, 100, 100_000, loss=0.015)
    assert slow_start_seconds(lossy, 144_800, "cold") == mathis_seconds(lossy, 144_800)


def condition(kernel: float, **predicted: float) -> Condition:
    everything: Mapping[str, float] = dict.fromkeys(PREDICTORS, 4.0) | predicted
    return Condition(40, 20, 0.0, 1000, "cold", 10, kernel, 0.1, everything)


def test_a_model_twice_as_fast_here_and_as_slow_there_is_100_percent_apart() -> None:
    found = KernelValidation([condition(1.0, model=0.5), condition(1.0, model=2.0)])
    assert found.typical_error("model") == pytest.approx(1.0)
    assert found.typical_error("mathis") == pytest.approx(3.0)
    assert found.noise == pytest.approx(0.1)
    assert found.conditions[0].error("model") == pytest.approx(-0.5)


def test_the_model_must_be_closer_than_every_formula_and_than_the_limit() -> None:
    assert KernelValidation([condition(1.0, model=1.1)]).failures(0.2) == []
    assert KernelValidation([condition(1.0, model=1.3)]).failures(0.2) == [
        "the model is 30.0% apart; at most 20% may be"
    ]
    assert KernelValidation([condition(1.0, model=1.1, slow_start=1.05)]).failures(0.2) == [
        "the model is 10.0% apart; 'slow start, then the formula of Mathis' is 5.0%"
    ]


def test_conditions_hold_the_means_of_the_kernel_and_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(line: Line, transfers: list[Transfer], *, seed: int, most_seconds: float) -> None:
        assert not line.shared
        assert seed == 3
        for number, transfer in enumerate(transfers):
            assert 0 <= transfer.start < most_seconds - 60
            transfer.seconds += [transfer.sizes[0] * (number % 2 + 1) / 1e6, 0.5]

    monkeypatch.setattr(validation, "measure", measured)
    line = Line(40, 20, 100_000)
    cold, warm, large, _ = validate_transfers(samples=2, lines=(line,), sizes=(20_000, 40_000), seed=3).conditions
    assert (cold.nbytes, cold.kind, cold.count, large.nbytes) == (20_000, "cold", 2, 40_000)
    assert cold.kernel_seconds == pytest.approx(0.03)
    assert large.kernel_seconds == pytest.approx(0.06)
    assert cold.standard_error == pytest.approx(0.02 / math.sqrt(2) / math.sqrt(2) / 0.03)
    assert (warm.kind, warm.kernel_seconds, warm.standard_error) == ("warm", 0.5, 0.0)
    expected = transfer_times(plain_profile(40, 20, queue_bytes=100_000), 20_000, samples=1)
    assert cold.predicted_seconds["model"] == expected["cold"].mean_seconds
    assert warm.predicted_seconds["model"] == expected["warm"].mean_seconds
    assert cold.predicted_seconds["line_rate"] == line_rate_seconds(line, 20_000)
