import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.netsim_proxy.link import (
    PROFILES,
    Blocked,
    Deliver,
    Direction,
    Fail,
    Link,
    LossModel,
    NetworkEvent,
    Profile,
)
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.outcomes import RECENT_MESSAGES, Cause, DirectionCounters
from hypergpu.netsim_proxy.link.profiles import Loss, Path
from tests.examples import examples

UP, DOWN = Direction.UP, Direction.DOWN


def fixed(delay: float = 0.05, mbit: float = math.inf, loss: Loss | None = None, queue: int = 0) -> Profile:
    path = Path(Uniform(delay, delay), mbit, loss or Loss(), queue)
    return Profile("fixed", up=path, down=path)


def unary(link: Link, now: float, nbytes: int = 100) -> Deliver | Fail:
    rpc = link.begin(now)
    request = link.offer(now, UP, nbytes, rpc, end=True)
    assert not isinstance(request, Blocked)
    if isinstance(request, Fail):
        return request
    reply = link.offer(request.at, DOWN, nbytes, rpc, end=True)
    assert not isinstance(reply, Blocked)
    return reply


@pytest.mark.parametrize(
    ("name", "low", "high", "loss"),
    [
        ("perfect", 0, 1, 0.0),
        ("good", 10, 50, 0.001),
        ("average", 50, 150, 0.01),
        ("poor", 150, 300, 0.05),
        ("unstable", 50, 500, 0.1),
    ],
)
def test_a_profile_takes_the_latency_and_loses_the_share_that_it_says(
    name: str, low: float, high: float, loss: float
) -> None:
    link, count = Link("node", PROFILES[name], seed=1), 6_000
    outcomes = [(float(i), unary(link, float(i), nbytes=1)) for i in range(count)]
    times = [1000 * (outcome.at - at) for at, outcome in outcomes if isinstance(outcome, Deliver)]
    assert min(times) >= low
    assert max(times) <= high + 0.01
    assert fmean(times) == pytest.approx((low + high) / 2, rel=0.03)
    lost = 1 - len(times) / count
    assert abs(lost - loss) <= 3 * math.sqrt(loss * (1 - loss) / count)
    assert link.rpcs_lost == count - len(times)


def test_half_of_the_round_trip_is_on_either_path() -> None:
    link = Link("node", PROFILES["average"], seed=4)
    rpc = link.begin(0.0)
    request = link.offer(0.0, UP, 1, rpc, end=True)
    assert isinstance(request, Deliver)
    reply = link.offer(10.0, DOWN, 1, rpc, end=True)
    assert isinstance(reply, Deliver)
    assert request.at == pytest.approx(reply.at - 10.0, abs=1e-6)


def test_half_of_the_losses_never_reach_the_server() -> None:
    link, sides = Link("node", fixed(loss=Loss(1.0)), seed=2), {UP: 0, DOWN: 0}
    for i in range(4000):
        rpc = link.begin(float(i))
        first = link.offer(float(i), UP, 100, rpc, end=True)
        if isinstance(first, Fail):
            sides[UP] += 1
        else:
            assert isinstance(link.offer(i + 0.5, DOWN, 100, rpc, end=True), Fail)
            sides[DOWN] += 1
    assert abs(sides[UP] - 2000) < 3 * math.sqrt(1000)


def test_a_loss_is_noticed_later_than_it_happens_and_not_by_an_infinite_time() -> None:
    link = Link("node", fixed(delay=0.05, loss=Loss(1.0)), seed=2)
    for i in range(200):
        outcome = unary(link, float(10 * i))
        assert isinstance(outcome, Fail)
        assert outcome.cause is Cause.LOSS
        assert 10 * i + 0.3 <= outcome.at <= 10 * i + 0.85


def test_long_streams_are_lost_at_any_point() -> None:
    link, points = Link("node", fixed(loss=Loss(1.0)), seed=3), []
    for i in range(600):
        rpc = link.begin(float(i))
        sent = 0
        while isinstance(link.offer(float(i), DOWN, 16_384, rpc), Deliver) and sent < 80 << 20:
            sent += 16_384
        if sent < 80 << 20:
            points.append(sent)
    assert 200 < len(points) < 400
    assert len(set(points)) > 100
    assert min(points) < 1 << 20 < max(points)


def test_nothing_is_lost_in_the_transport_model() -> None:
    link = Link("node", fixed(mbit=10, loss=Loss(0.2)), seed=3, loss_model=LossModel.TRANSPORT)
    assert all(isinstance(unary(link, 100.0 * i, 5000), Deliver) for i in range(200))
    assert link.rpcs_lost == 0


def test_messages_of_a_stream_get_draws_of_their_own_and_pieces_of_one_share_it() -> None:
    link = Link("node", PROFILES["average"], seed=5)
    rpc = link.begin(0.0)
    first = link.offer(0.0, UP, 1000, rpc)
    second = link.offer(0.001, UP, 1000, rpc)
    assert isinstance(first, Deliver)
    assert isinstance(second, Deliver)
    assert second.at - 0.001 == pytest.approx(first.at, abs=0.001)
    later = [link.offer(float(i), UP, 1000, rpc) for i in range(1, 50)]
    delays = [outcome.at - i for i, outcome in enumerate(later, start=1) if isinstance(outcome, Deliver)]
    assert len({round(delay, 6) for delay in delays}) == 49
    assert 0.025 <= min(delays) < max(delays) <= 0.0752


def interleaved(draw: Callable[[], int], link: Link, other: Link | None) -> Iterator[float]:
    for i in range(300):
        now = i * 0.01
        if other is not None and draw() % 2:
            unary(other, now, 5000)
        outcome = unary(link, now, 2000)
        yield outcome.at


@given(seed=st.integers(0, 2**63), noise=st.lists(st.integers(0, 9), min_size=300, max_size=300))
@examples(10)
def test_what_another_link_does_changes_nothing(seed: int, noise: list[int]) -> None:
    alone = list(interleaved(lambda: 0, Link("a", PROFILES["unstable"], seed), None))
    drawn = iter(noise)
    other = Link("b", PROFILES["poor"], seed)
    assert list(interleaved(lambda: next(drawn), Link("a", PROFILES["unstable"], seed), other)) == alone
    assert list(interleaved(lambda: 0, Link("a", PROFILES["unstable"], seed + 1), None)) != alone
    assert list(interleaved(lambda: 0, Link("c", PROFILES["unstable"], seed), None)) != alone


offers = st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 200_000), st.integers(0, 3)), min_size=1, max_size=60)


@given(offers=offers, mbit=st.floats(0.5, 1000), model=st.sampled_from(LossModel))
@examples(60)
def test_never_early_in_order_and_never_faster_than_the_bandwidth(
    offers: list[tuple[float, int, int]], mbit: float, model: LossModel
) -> None:
    latency = Uniform(0.01, 0.03)
    path = Path(latency, mbit)
    link = Link("node", Profile("p", up=path, down=path), seed=7, loss_model=model)
    streams = [link.begin(0.0, connection=i % 2) for i in range(4)]
    now, sent, last = 0.0, 0, [0.0] * 4
    began: float | None = None
    longest = 0
    for gap, nbytes, stream in offers:
        now += gap
        began = now if began is None else began
        outcome = link.offer(now, UP, nbytes, streams[stream])
        assert isinstance(outcome, Deliver)
        assert outcome.at >= now + 0.01 + nbytes / (mbit * 125_000) - 1e-9
        assert outcome.at >= last[stream]
        last[stream] = outcome.at
        sent += nbytes
        longest = max(longest, nbytes)
        # TCP's packets are committed an offer at a time: what another connection sends meanwhile may pass before them.
        ahead = longest if model is LossModel.TRANSPORT else 0
        assert max(last) - began - 0.01 >= (sent - ahead) / (mbit * 125_000) - 1e-6 or sent == nbytes


def test_streams_share_one_queue() -> None:
    link = Link("node", fixed(delay=0.0, mbit=8), seed=0)
    a, b = link.begin(0.0), link.begin(0.0)
    big, small = link.offer(0.0, UP, 1_000_000, a), link.offer(0.0, UP, 1000, b)
    other_way = link.offer(0.0, DOWN, 1000, b)
    assert isinstance(big, Deliver)
    assert isinstance(small, Deliver)
    assert isinstance(other_way, Deliver)
    assert big.at == pytest.approx(1.0)
    assert small.at == pytest.approx(1.001)
    assert other_way.at == pytest.approx(0.001)
    assert link.queued_bytes(0.5, UP) == pytest.approx(501_000)


def test_the_queue_says_when_there_is_room() -> None:
    link = Link("node", fixed(delay=0.0, mbit=8, queue=100_000), seed=0)
    link.offer(0.0, UP, 150_000, link.begin(0.0))
    assert link.room_at(0.0, UP) == pytest.approx(0.05)
    assert link.room_at(0.06, UP) == 0.06
    assert link.room_at(0.0, DOWN) == 0.0


@pytest.mark.parametrize("burst", [1.0, 3.0, 10.0])
def test_bursts_are_as_long_and_losses_as_many_as_the_model_says(burst: float) -> None:
    mean, count = 0.1, 20_000
    link = Link("node", fixed(delay=0.0, loss=Loss(mean, burst)), seed=11)
    lost = [isinstance(unary(link, float(i)), Fail) for i in range(count)]
    runs = [len(run) for run in "".join("x" if flag else " " for flag in lost).split()]
    expected = burst if burst > 1 else 1 / (1 - mean)
    # A geometric length of mean m varies by m (m - 1); losses come in clumps of that size.
    assert abs(fmean(runs) - expected) <= 3 * math.sqrt(expected * (expected - 1) / len(runs)) + 1e-9
    clump = 2 * burst - 1
    assert abs(sum(lost) / count - mean) <= 3 * math.sqrt(mean * (1 - mean) * clump / count)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_correlation_keeps_the_distribution(rho: float) -> None:
    path = Path(Uniform(0.0, 0.1))
    link, count = Link("node", Profile("p", path, path, rho), seed=13), 15_000
    delays = [
        outcome.at - i
        for i in range(count)
        if isinstance(outcome := link.offer(float(i), UP, 1, link.begin(float(i))), Deliver)
    ]
    mean = fmean(delays)
    variance = fmean((delay - mean) ** 2 for delay in delays)
    effective = math.sqrt(count * (1 - rho) / (1 + rho))
    assert abs(mean - 0.05) <= 3 * 0.1 / math.sqrt(12) / effective
    assert variance == pytest.approx(0.01 / 12, rel=4 / effective)
    neighbours = fmean((a - mean) * (b - mean) for a, b in pairwise(delays)) / variance
    # Of uniforms that are joined by a Gaussian copula (Pearson's formula).
    assert neighbours == pytest.approx(6 / math.pi * math.asin(rho / 2), abs=0.03)


def test_paths_differ_up_and_down() -> None:
    profile = PROFILES["good"].with_up_of(PROFILES["poor"])
    link = Link("node", profile, seed=0)
    assert link.latency_bounds_ms(UP)[0] >= 75
    assert link.latency_bounds_ms(DOWN)[1] <= 25
    assert link.bandwidth_mbit(DOWN) > link.bandwidth_mbit(UP)


def test_counters_say_what_passed() -> None:
    link = Link("node", fixed(delay=0.25), seed=0)
    unary(link, 0.0, 700)
    unary(link, 1.0, 300)
    counters = link.counters(UP)
    assert (counters.bytes, counters.messages) == (1000, 2)
    assert counters.delay_seconds == pytest.approx(0.5)
    assert link.rpcs == 2


def test_the_recent_delay_follows_what_is_injected_now_and_the_sum_keeps_all() -> None:
    counters = DirectionCounters()
    for _ in range(4):
        counters.delayed(0.1)
    counters.delayed(0.6)
    assert counters.recent_seconds == pytest.approx(0.2)  # the plain mean of the first few
    for _ in range(RECENT_MESSAGES * 8):
        counters.delayed(0.6)
    assert counters.recent_seconds == pytest.approx(0.6, rel=0.01)
    lasting = counters.delay_seconds / counters.messages
    assert lasting < 0.6
    for _ in range(RECENT_MESSAGES):
        counters.delayed(0.0)
    assert 0.3 * 0.6 < counters.recent_seconds < 0.4 * 0.6
    link = Link("node", fixed(delay=0.25), seed=0)
    unary(link, 0.0, 700)
    assert link.counters(UP).recent_seconds == pytest.approx(0.25)


def test_what_belongs_to_no_rpc_is_delayed_and_never_lost() -> None:
    link = Link("node", fixed(loss=Loss(1.0)), seed=0)
    connection = link.connect(0.0, connection=3)
    assert all(isinstance(link.offer(float(i), UP, 9, connection, end=True), Deliver) for i in range(100))
    assert link.rpcs == 0


def test_a_profile_change_lets_the_queue_go_on_at_the_new_rate() -> None:
    link = Link("node", fixed(delay=0.0, mbit=8), seed=0)
    rpc = link.begin(0.0)
    link.offer(0.0, UP, 1_000_000, rpc)
    link.set_profile(fixed(delay=0.0, mbit=4), 0.5)
    after = link.offer(0.5, UP, 1000, rpc)
    assert isinstance(after, Deliver)
    assert after.at == pytest.approx(0.5 + 501_000 * 8 / 4e6)


def test_a_collapse_slows_transfers_in_progress() -> None:
    for model in LossModel:
        link = Link("node", fixed(delay=0.01, mbit=80, queue=65_536), seed=0, loss_model=model)
        rpc = link.begin(0.0)
        now, arrived = 0.0, 0.0
        for piece in range(100):
            if piece == 50:
                link.apply(NetworkEvent("bandwidth_collapse", "node", factor=0.1), now)
            outcome = link.offer(now, UP, 65_536, rpc)
            assert isinstance(outcome, Deliver)
            arrived, now = outcome.at, max(now, link.room_at(now, UP))
        assert arrived == pytest.approx(50 * 65_536 / 10e6 + 50 * 65_536 / 1e6, rel=0.15)


@pytest.mark.parametrize("loss_model", list(LossModel))
def test_what_is_express_overtakes_the_queue_and_takes_none_of_it(loss_model: LossModel) -> None:
    path = Path(Uniform(0.01, 0.01), bandwidth_mbit=8)
    link = Link("n", Profile("p", path, path), 1, loss_model=loss_model)
    rpc, control = link.begin(0.0, 1), link.connect(0.0, 1)
    first = link.offer(0.0, Direction.UP, 100_000, rpc)
    assert link.offer(0.0, Direction.UP, 17, control, express=True) == Deliver(0.01)
    second = link.offer(0.0, Direction.UP, 100_000, rpc)
    assert isinstance(first, Deliver) and isinstance(second, Deliver)
    assert first.at > 0.1 and second.at > 0.2
