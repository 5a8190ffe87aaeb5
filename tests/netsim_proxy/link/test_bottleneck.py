"""Connections that share a link under TCP: each paced by its own window, all through one queue."""

import heapq
from collections.abc import Sequence
from statistics import fmean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel
from hypergpu.netsim_proxy.link.bottleneck import Bottleneck, Passage
from hypergpu.netsim_proxy.link.transfer import plain_profile

UP, DOWN = Direction.UP, Direction.DOWN
PIECE = 16 << 10
SHARE = 1448 / 1500
"""Payload that a byte of bandwidth carries."""


def new_link(rtt_ms: float, mbit: float, loss: float = 0.0, *, seed: int = 0, queue: int = 0) -> Link:
    return Link("n", plain_profile(rtt_ms, mbit, loss, queue_bytes=queue), seed, loss_model=LossModel.TRANSPORT)


def arrival(outcome: object) -> float:
    assert isinstance(outcome, Deliver)
    return outcome.at


def goodputs(link: Link, flows: int, seconds: float, *, since: float = 3.0, piece: int = PIECE) -> list[float]:
    """Send as much as each connection takes; return Mbit/s of each between `since` and `seconds`."""
    rpcs = [link.begin(0.0, number) for number in range(flows)]
    due = [(0.001 * number, number) for number in range(flows)]
    received = [0] * flows
    while due and due[0][0] < seconds:
        now, number = heapq.heappop(due)
        at = arrival(link.offer(now, UP, piece, rpcs[number]))
        received[number] += piece if since <= at < seconds else 0
        room = link.room_at(now, UP, number)
        assert room >= now
        heapq.heappush(due, (room, number))
    return [nbytes * 8e-6 / (seconds - since) for nbytes in received]


def fairness(values: Sequence[float]) -> float:
    """Return Jain's index."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def test_eight_connections_fill_a_lossy_link_that_one_cannot() -> None:
    alone = goodputs(new_link(40, 20, 0.01), 1, 20)
    together = goodputs(new_link(40, 20, 0.01), 8, 20)
    assert alone[0] == pytest.approx(2.8, abs=0.4)
    assert sum(together) == pytest.approx(19.1, abs=0.6)


def test_eight_connections_fill_a_link_without_loss() -> None:
    assert sum(goodputs(new_link(40, 100), 8, 8)) == pytest.approx(100 * SHARE, rel=0.03)


@settings(max_examples=6, deadline=None)
@given(
    flows=st.integers(1, 16),
    rtt_ms=st.sampled_from([10, 40, 80]),
    loss=st.sampled_from([0.0, 0.001, 0.01, 0.03]),
    seed=st.integers(0, 99),
)
def test_flows_carry_what_each_could_alone_or_what_the_link_has(
    flows: int, rtt_ms: float, loss: float, seed: int
) -> None:
    alone = fmean(goodputs(new_link(rtt_ms, 20, loss, seed=seed + i), 1, 8, since=2)[0] for i in range(4))
    shares = goodputs(new_link(rtt_ms, 20, loss, seed=seed), flows, 8, since=2)
    ceiling = 20 * SHARE
    assert sum(shares) <= ceiling * 1.03
    assert sum(shares) >= 0.8 * min(ceiling, flows * alone)
    assert fairness(shares) > 0.8


@settings(max_examples=30, deadline=None)
@given(backlog_ms=st.integers(1, 60), nbytes=st.integers(1, 1448))
def test_a_small_message_waits_behind_the_queue_of_another_connection(backlog_ms: int, nbytes: int) -> None:
    """Twenty packets that are sent at once occupy 12 ms of 20 Mbit/s; the message waits for what is left of them."""
    link = new_link(200, 20, queue=200_000)
    bulk, small = link.begin(0.0, 1), link.begin(0.0, 2)
    burst_seconds = 10 * 1500 * 8 / 20e6  # the initial window
    link.offer(0.0, UP, 10 * 1448, bulk)
    now = backlog_ms / 10_000
    serialised = (nbytes + 52) * 8 / 20e6
    waited = max(0.0, burst_seconds - now)
    assert arrival(link.offer(now, UP, nbytes, small, end=True)) == pytest.approx(
        now + waited + 0.1 + serialised, abs=1500 * 8 / 20e6
    )


def test_a_standing_queue_delays_other_connections_up_to_its_length() -> None:
    link = new_link(40, 20, queue=100_000)
    bulk = link.begin(0.0, 1)
    now, delays, probe_at = 0.0, [], 2.0
    while now < 12:
        link.offer(now, UP, PIECE, bulk)
        now = max(now, link.room_at(now, UP, 1))
        if now >= probe_at:
            delays.append(arrival(link.offer(now, UP, 200, link.begin(now, 2), end=True)) - now)
            probe_at = now + 0.2
    full = 100_000 * 8 / 20e6
    arrived = sorted(delays)[: -len(delays) // 5]  # the others may have been lost in a full queue
    assert 0.02 + full / 2 < median(arrived) and max(arrived) < 0.02 + full + 0.005


def test_a_full_uplink_delays_the_acknowledgements_of_a_download() -> None:
    def download(upload: bool) -> float:
        link = new_link(40, 5, queue=100_000)
        now, bulk = 0.0, link.begin(0.0, 1)
        while upload and now < 3:
            link.offer(now, UP, PIECE, bulk)
            now = max(now, link.room_at(now, UP, 1))
        return arrival(link.offer(3.0, DOWN, 60_000, link.begin(3.0, 2), end=True)) - 3.0

    free = download(False)
    assert free == pytest.approx(0.02 + 2 * 0.04 + 0.04, abs=0.03)
    assert download(True) > free + 2 * 0.05  # two round trips wait behind 50 ms of queue at least


def test_connections_that_take_turns_do_not_disturb_each_other() -> None:
    link, lone = new_link(40, 20), new_link(40, 20)
    for number in range(4):
        now = 10.0 * number
        took = arrival(link.offer(now, UP, 100_000, link.begin(now, number), end=True)) - now
        assert took == arrival(lone.offer(now, UP, 100_000, lone.begin(now, number), end=True)) - now
        assert took == pytest.approx(0.1314, abs=0.01) or number


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=12))
def test_bursts_pass_as_through_a_queue_of_packets(bursts: list[tuple[int, int]]) -> None:
    bottleneck, queue, last = shared_bottleneck(queue_packets=50), 0, 0
    for milliseconds, packets in sorted(bursts):
        queue, last = max(0, queue - (milliseconds - last)), milliseconds
        passed = min(packets, 50 - queue)
        passage = bottleneck.admit(milliseconds / 1000, 0.0, packets)
        assert passage.first_queue == pytest.approx(queue)
        assert (
            packets - passage.dropped == pytest.approx(passed, abs=1)
            and passage.first_dropped == packets - passage.dropped
        )
        queue += packets - passage.dropped
    assert bottleneck.queue_at(last / 1000 + 0.01) == pytest.approx(max(0, queue - 10))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0, 3, 17]), st.integers(1, 40)), min_size=1, max_size=12)
)
def test_the_queue_drains_in_the_time_of_what_passed(flights: list[tuple[int, int, int]]) -> None:
    """Whatever the order of flights, each packet that passes takes its service time, and no other packet does."""
    bottleneck = shared_bottleneck(queue_packets=50)
    passed, last = 0, 0.0
    for begin, span, packets in flights:
        passage = bottleneck.admit(begin / 100, span / 100, packets)
        assert 0 <= passage.dropped <= packets and passage.first_queue >= 0 and passage.last_queue >= 0
        passed += packets - passage.dropped
        last = max(last, (begin + span) / 100)
    assert 0 <= bottleneck.queue_at(last) <= passed
    assert bottleneck.queue_at(last + passed * 0.001) == pytest.approx(0.0, abs=1e-6)


def test_a_burst_that_does_not_fit_loses_its_end() -> None:
    bottleneck = shared_bottleneck(queue_packets=10)
    assert bottleneck.admit(0.0, 0.0, 8) == Passage(0.0, 7.0, 0, 8)
    assert bottleneck.admit(0.0, 0.0, 8) == Passage(8.0, 9.0, 6, 2)
    assert bottleneck.queue_at(0.004) == pytest.approx(6.0)


def test_arrivals_at_twice_the_rate_fill_the_queue_and_lose_every_other_packet_then() -> None:
    passage = shared_bottleneck(queue_packets=10).admit(0.0, 0.04, 80)
    assert passage.first_queue == 0.0 and passage.last_queue == pytest.approx(10.0)
    assert passage.dropped == 30  # 80 arrive, 40 leave, 10 wait
    assert passage.first_dropped == pytest.approx(20, abs=1)


def shared_bottleneck(queue_packets: int) -> Bottleneck:
    """Return a queue of 1,000 packets a second that several flows use."""
    bottleneck = Bottleneck()
    bottleneck.set_path(0.001, queue_packets, 0.0)
    bottleneck.busy_until = 1e9
    bottleneck._begin_sharing(0.0)
    return bottleneck
