import math
from statistics import NormalDist, fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.draws import Draws
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
    draws = Draws(1, "latency")
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
