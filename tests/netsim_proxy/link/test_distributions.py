import math
from collections.abc import Callable
from statistics import NormalDist, fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.netsim_proxy.link.distributions import (
    Empirical,
    Latency,
    LogNormal,
    Normal,
    Pareto,
    Shifted,
    Uniform,
    standard_normal,
    standard_normal_cdf,
)
from hypergpu.netsim_proxy.link.loss import LossChain, PacketLoss
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile

ALL: list[Latency] = [
    Uniform(0.01, 0.03),
    Normal(0.05, 0.01),
    LogNormal(0.02, 0.5, floor=0.01),
    Pareto(0.01, 2.5),
    Empirical.of([0.03, 0.01, 0.02, 0.02]),
    Shifted(Uniform(0.0, 0.01), 0.1),
]


@pytest.mark.parametrize("latency", ALL, ids=lambda latency: type(latency).__name__)
@given(a=st.floats(0, 1, exclude_max=True), b=st.floats(0, 1, exclude_max=True))
def test_quantiles_grow_and_are_never_negative(latency: Latency, a: float, b: float) -> None:
    low, high = latency.at(min(a, b)), latency.at(max(a, b))
    assert 0 <= low <= high < math.inf


def drawn(latency: Latency, count: int = 20_000) -> list[float]:
    draws = KeyedRandom(1, "latency")
    return [latency.at(draws.uniform(i)) for i in range(count)]


def test_moments_are_those_that_the_parameters_say() -> None:
    assert fmean(drawn(Uniform(0.01, 0.03))) == pytest.approx(0.02, rel=0.01)
    assert fmean(drawn(Normal(0.05, 0.01))) == pytest.approx(0.05, rel=0.01)
    assert median(drawn(LogNormal(0.02, 0.5, floor=0.01))) == pytest.approx(0.03, rel=0.02)
    assert fmean(drawn(Pareto(0.01, 3.0))) == pytest.approx(0.015, rel=0.03)
    assert max(drawn(Pareto(0.01, 1.0, ceiling=0.1))) == 0.1
    assert min(drawn(Normal(0.01, 0.01, floor=0.005))) == 0.005


def test_an_empirical_distribution_gives_back_what_was_measured() -> None:
    measured = [0.01 * i for i in range(1, 101)]
    latency = Empirical.of(reversed(measured))
    assert latency.at(0.0) == 0.01
    assert latency.at(1 - 1e-12) == pytest.approx(1.0)
    assert latency.at(0.5) == pytest.approx(median(measured))
    assert Empirical.of([0.2]).at(0.7) == 0.2


@given(z=st.floats(-8, 8))
def test_normal_scores_and_back(z: float) -> None:
    u = standard_normal_cdf(z)
    assert 0 <= u < 1
    assert u == pytest.approx(NormalDist().cdf(z), abs=1e-12)
    if abs(z) < 5:
        assert standard_normal(u) == pytest.approx(z, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Loss(-0.001), "loss must be between 0 and 1, not -0.001"),
        (lambda: Loss(1.001), "loss must be between 0 and 1, not 1.001"),
        (lambda: Loss(0.1, 0.99), "a mean burst is 1 to 100,000 long, not 0.99"),
        (lambda: Loss(0.1, 100_001.0), "a mean burst is 1 to 100,000 long, not 100001"),
        (lambda: Loss(0.9, 2.0), "bursts of 2.0 cannot make up a mean loss of 0.9"),
        (lambda: Path(Uniform(0.0, 0.1), 9e-7), "bandwidth must be above 0"),
        (lambda: Path(Uniform(0.0, 0.1), math.nan), "bandwidth must be above 0"),
        (
            lambda: Profile("p", Path(Uniform(0, 0)), Path(Uniform(0, 0)), 1.0),
            "jitter correlation must be in .0, 1., not 1",
        ),
        (
            lambda: Profile("p", Path(Uniform(0, 0)), Path(Uniform(0, 0)), -0.1),
            "jitter correlation must be in .0, 1., not",
        ),
    ],
)
def test_what_no_link_can_be_is_refused(make: Callable[[], object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()


def test_the_bounds_of_what_a_link_can_be_are_allowed() -> None:
    assert Loss(0.0).entry == 0.0
    assert Loss(1.0, 5.0).entry == 1.0
    assert Loss(1.0).entry == 1.0
    assert Loss(0.25, 100_000.0).entry == pytest.approx(1 / 300_000)
    assert Loss(2 / 3, 2.0).entry == pytest.approx(1.0)
    assert Loss(0.3, 1.0).entry == 0.3
    assert Path(Uniform(0, 0), 1e-6).bytes_per_second == pytest.approx(0.125)
    queues = {mbit: Path(Uniform(0, 0), mbit).queue_limit for mbit in (1.0, 8.0, 80.0, 1000.0, math.inf)}
    assert queues == {1.0: 65_536, 8.0: 100_000, 80.0: 1_000_000, 1000.0: 4_194_304, math.inf: 4_194_304}
    assert Path(Uniform(0, 0), 80.0, queue_bytes=7).queue_limit == 7


def test_a_path_that_loses_all_loses_all_in_bursts_too() -> None:
    chain, packets = LossChain(Loss(1.0, 5.0), KeyedRandom(1, "c")), PacketLoss(Loss(1.0, 5.0), KeyedRandom(1, "p"))
    assert all(chain.lost(index) for index in range(2_000))
    lost = sum(packets.take(1) for _ in range(20_000))
    assert lost / 20_000 == pytest.approx(0.99, abs=0.003), "TCP would never end where nothing passes at all"
    assert not any(LossChain(Loss(0.0), KeyedRandom(1, "c")).lost(index) for index in range(100))


def test_a_chain_begins_as_lossy_as_it_goes_on() -> None:
    first = sum(LossChain(Loss(0.5, 20.0), KeyedRandom(1, "c", number)).lost(0) for number in range(2_000))
    assert first / 2_000 == pytest.approx(0.5, abs=0.04)
    runs = LossChain(Loss(0.2, 4.0), KeyedRandom(2, "c"))
    told = "".join("x" if runs.lost(index) else "." for index in range(60))
    assert told == ".......xxxxxx...xxxx........xxxxxxxxx..xxxx.....xx.........x"
