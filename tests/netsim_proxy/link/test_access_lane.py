"""The upstream's access link, which all links share: who gets how much of it, and when."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel, NetworkEvent
from hypergpu.netsim_proxy.link.access_lane import AccessLane, AccessLink, AccessShares, Share, UpstreamBandwidth
from hypergpu.netsim_proxy.link.striping import longest_piece_bytes
from hypergpu.netsim_proxy.link.tcp import PACKET_BYTES, SEGMENT_BYTES
from hypergpu.netsim_proxy.link.transfer import plain_profile

MBIT = 125_000
HEADERS = PACKET_BYTES / SEGMENT_BYTES
MODELS = list(LossModel)


@dataclass
class Transfer:
    """A transfer over one connection of a node."""

    link: Link
    nbytes: int
    connection: int = 0
    start: float = 0.0
    done_at: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)


def links(access: AccessLink, own_mbit: Sequence[float], model: LossModel = LossModel.TRANSPORT) -> list[Link]:
    """Return a link for each node, with 40 ms and no loss."""
    return [
        Link(f"node_{number}", plain_profile(40, mbit), seed=1, loss_model=model, access=access)
        for number, mbit in enumerate(own_mbit)
    ]


def run(transfers: Sequence[Transfer], direction: Direction = Direction.DOWN, until: float = math.inf) -> float:
    """Send all transfers, each as its link has room; return the time of the last arrival."""
    due = [(transfer.start, number) for number, transfer in enumerate(transfers)]
    rpcs = [transfer.link.begin(transfer.start, transfer.connection) for transfer in transfers]
    left = [transfer.nbytes for transfer in transfers]
    heapq.heapify(due)
    while due and due[0][0] < until:
        now, number = heapq.heappop(due)
        transfer = transfers[number]
        link = transfer.link
        at = link.room_at(now, direction, transfer.connection)
        if at <= now:
            piece = min(left[number], longest_piece_bytes(link, direction, 1 << 20))
            left[number] -= piece
            outcome = link.offer(now, direction, piece, rpcs[number], end=not left[number])
            assert isinstance(outcome, Deliver)
            transfer.arrivals.append((outcome.at, piece))
            transfer.done_at = outcome.at
        if left[number]:
            heapq.heappush(due, (at, number))
    return max(transfer.done_at for transfer in transfers)


def wire_seconds(nbytes: float, mbit: float, model: LossModel) -> float:
    """Return what the line takes for bytes, with headers where there are packets."""
    return nbytes * (HEADERS if model is LossModel.TRANSPORT else 1) / (mbit * MBIT)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("nodes", [2, 10, 40])
def test_equal_nodes_get_equal_shares_and_together_the_bandwidth(
    nodes: int, direction: Direction, model: LossModel
) -> None:
    access = AccessLink(UpstreamBandwidth(100, 100))
    transfers = [Transfer(link, 4_000_000) for link in links(access, [100] * nodes, model)]
    last = run(transfers, direction)
    ideal = wire_seconds(4_000_000 * nodes, 100, model)
    assert ideal < last < 1.02 * ideal + 0.25  # a round trip and slow start
    assert min(transfer.done_at for transfer in transfers) > 0.9 * last


@pytest.mark.parametrize("model", MODELS)
def test_slow_nodes_keep_their_rate_and_leave_the_rest_to_the_others(model: LossModel) -> None:
    slow, fast = (
        run([Transfer(link, nbytes)])
        for link, nbytes in zip(links(AccessLink(), [2, 90], model), (2_000_000, 30_000_000), strict=True)
    )
    access = AccessLink(UpstreamBandwidth(down_mbit=100))
    transfers = [Transfer(link, 2_000_000) for link in links(access, [2] * 5 + [100], model)]
    transfers[-1].nbytes = 30_000_000
    run(transfers)
    assert [transfer.done_at for transfer in transfers[:-1]] == pytest.approx([slow] * 5, rel=0.02)
    assert transfers[-1].done_at == pytest.approx(fast, rel=0.04)


@pytest.mark.parametrize("model", MODELS)
def test_a_link_that_never_fills_it_costs_nothing(model: LossModel) -> None:
    def seconds(access: AccessLink) -> list[float]:
        transfers = [Transfer(link, 3_000_000) for link in links(access, [20] * 4, model)]
        run(transfers)
        return [transfer.done_at for transfer in transfers]

    assert seconds(AccessLink(UpstreamBandwidth(1000, 1000))) == pytest.approx(seconds(AccessLink()), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    own=st.lists(st.floats(0.5, 400), min_size=1, max_size=12),
    sizes=st.lists(st.integers(1_000, 3_000_000), min_size=12, max_size=12),
    starts=st.lists(st.floats(0, 2), min_size=12, max_size=12),
    mbit=st.floats(5, 300),
    model=st.sampled_from(MODELS),
)
def test_no_more_passes_than_the_bandwidth_and_none_of_it_is_wasted(
    own: list[float], sizes: list[int], starts: list[float], mbit: float, model: LossModel
) -> None:
    access = AccessLink(UpstreamBandwidth(down_mbit=mbit))
    transfers = [
        Transfer(link, size, start=start)
        for link, size, start in zip(links(access, own, model), sizes, starts, strict=False)
    ]
    last = run(transfers)
    arrivals = sorted(arrival for transfer in transfers for arrival in transfer.arrivals)
    longest = sum(max(nbytes for _, nbytes in transfer.arrivals) for transfer in transfers)
    rate, in_queue = mbit * MBIT / wire_seconds(mbit * MBIT, mbit, model), access.down.queue_seconds * mbit * MBIT
    for index, (begin, _) in enumerate(arrivals):
        passed = 0
        for at, nbytes in arrivals[index + 1 :]:
            passed += nbytes
            assert passed <= rate * (at - begin) + in_queue + 2 * longest
    total = sum(transfer.nbytes for transfer in transfers)
    assert last >= min(starts) + wire_seconds(total, mbit, model) * 0.999 - longest / rate
    # At the latest when the line and the longest transfer, one after the other, would have had their time.
    alone = max(t.start + wire_seconds(t.nbytes, m, model) for t, m in zip(transfers, own, strict=False))
    assert last < alone + 1.1 * wire_seconds(total, mbit, model) + 2


def test_each_of_several_connections_of_a_node_has_a_share() -> None:
    access = AccessLink(UpstreamBandwidth(down_mbit=50))
    one, striped = links(access, [1000, 1000])
    transfers = [Transfer(one, 4_000_000), *(Transfer(striped, 4_000_000, connection) for connection in range(4))]
    assert run(transfers) == pytest.approx(wire_seconds(20_000_000, 50, LossModel.TRANSPORT), rel=0.05)
    assert min(transfer.done_at for transfer in transfers) > 0.9 * transfers[0].done_at


@pytest.mark.parametrize("model", MODELS)
def test_a_small_call_waits_for_the_queue_and_not_for_the_transfers(model: LossModel) -> None:
    access = AccessLink(UpstreamBandwidth(100, 100, queue_bytes=500_000))
    *busy, idle = links(access, [100] * 41, model)
    run([Transfer(link, 20_000_000) for link in busy], until=5.0)
    delays = [
        call.at - 5.0
        for direction in Direction
        for call in [idle.offer(5.0, direction, 200, idle.begin(5.0), end=True)]
        if isinstance(call, Deliver)
    ]
    assert delays == pytest.approx([0.02, 0.02 + 0.04], abs=0.002)  # nothing goes up


def test_a_change_of_the_bandwidth_acts_on_transfers_in_progress() -> None:
    access = AccessLink(UpstreamBandwidth(down_mbit=100))
    nodes = links(access, [100] * 10, LossModel.RPC)
    transfers = [Transfer(link, 2_500_000) for link in nodes]

    def change(mbit: float, at: float) -> None:
        access.change(UpstreamBandwidth(down_mbit=mbit), at)
        for link in nodes:
            link.share_access(access)

    run(transfers, until=1.0)  # 12.5 of 25 MB
    sent = [sum(nbytes for _, nbytes in transfer.arrivals) for transfer in transfers]
    change(50, 1.0)
    rest = [Transfer(link, 2_500_000 - done, start=1.0) for link, done in zip(nodes, sent, strict=True)]
    assert run(rest) == pytest.approx(3.0, abs=0.15)
    change(math.inf, 3.2)
    assert run([Transfer(link, 2_500_000, start=3.2) for link in nodes]) == pytest.approx(3.4 + 0.02, abs=0.05)
    change(10, 4.0)
    assert run([Transfer(link, 250_000, start=4.0) for link in nodes]) == pytest.approx(6.0, abs=0.1)


def test_a_connection_that_is_closed_leaves_its_share_to_the_others() -> None:
    access = AccessLink(UpstreamBandwidth(down_mbit=80))
    staying, leaving = links(access, [1000, 1000], LossModel.RPC)
    begun = [Transfer(staying, 10_000_000), Transfer(leaving, 10_000_000)]
    run(begun, until=0.5)
    leaving.disconnect(0)
    rest = Transfer(staying, 10_000_000 - sum(nbytes for _, nbytes in begun[0].arrivals), start=0.5)
    assert run([rest]) == pytest.approx(0.5 + 0.75, abs=0.1)


def test_a_node_that_is_cut_off_leaves_its_share_to_the_others() -> None:
    access = AccessLink(UpstreamBandwidth(down_mbit=80))
    staying, cut = links(access, [1000, 1000], LossModel.RPC)
    begun = [Transfer(staying, 10_000_000), Transfer(cut, 10_000_000)]
    run(begun, until=0.5)
    cut.apply(NetworkEvent("partition", target_node="node_1"), 0.5)
    rest = Transfer(staying, 10_000_000 - sum(nbytes for _, nbytes in begun[0].arrivals), start=0.5)
    assert run([rest]) == pytest.approx(0.5 + 0.75, abs=0.15)


def test_the_work_for_a_piece_does_not_grow_with_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = 0
    push = AccessLane._push

    def count(lane: AccessLane, share: Share) -> None:
        nonlocal pushed
        pushed += 1
        push(lane, share)

    monkeypatch.setattr(AccessLane, "_push", count)
    for nodes in (10, 400):
        pushed = 0
        access = AccessLink(UpstreamBandwidth(down_mbit=500))
        transfers = [Transfer(link, 300_000) for link in links(access, [100] * nodes)]
        run(transfers)
        assert pushed <= 2 * sum(len(transfer.arrivals) for transfer in transfers)


def test_a_late_piece_meets_the_lane_as_it_is_and_time_does_not_go_back() -> None:
    lane = AccessLane(8)
    lane.cross(10.0, Share(), 1_000_000, 0.0)
    assert lane.cross(2.0, Share(), 1_000_000, 0.0) == pytest.approx(2.0)
    assert lane.cross(12.0, Share(), 1_000, 0.0) == pytest.approx(0.001)


@pytest.mark.parametrize(("down", "up", "queue"), [(0, 1, 0), (1, -1, 0), (math.nan, 1, 0), (1, 1, -1), (1e-9, 1, 0)])
def test_what_is_no_bandwidth_is_refused(down: float, up: float, queue: int) -> None:
    with pytest.raises(ValueError, match=r"bandwidth must be above 0|0 bytes or more"):
        UpstreamBandwidth(down, up, queue)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("cross"), st.integers(0, 5), st.floats(1, 1e7), st.floats(0, 1)),
            st.tuples(st.just("forget"), st.integers(0, 5), st.just(0.0), st.just(0.0)),
            st.tuples(st.just("wait"), st.just(0), st.floats(0, 10), st.just(0.0)),
            st.tuples(st.just("change"), st.just(0), st.sampled_from([0.01, 1.0, 1e4, math.inf]), st.just(0.0)),
        ),
        max_size=60,
    )
)
def test_whatever_happens_all_that_was_sent_passes_and_nothing_else_is_waited_for(
    steps: list[tuple[str, int, float, float]],
) -> None:
    lane, now = AccessLane(10), 0.0
    shares = AccessShares(lane)
    for kind, connection, amount, line_seconds in steps:
        if kind == "cross":
            before = shares.room_at(connection)
            seconds = shares.cross(now, connection, amount, line_seconds)
            assert 0 <= seconds < math.inf
            assert shares.room_at(connection) >= before or not lane.is_limited
        elif kind == "forget":
            shares.forget(connection)
        elif kind == "wait":
            now += amount
            assert 0 <= lane.wait_seconds(now) <= lane.queue_seconds
        else:
            lane.set_bandwidth(amount, 0, now)
        assert lane.waiting_bytes >= -1e-3
        assert lane.useful_bytes > 0
    lane.set_bandwidth(10, 0, now)
    lane.advance(now + 1e9)
    assert (lane.waiting_bytes, lane.wait_seconds(now + 1e9)) == (0, 0)
    assert shares.cross(now + 1e9, 7, 1_250_000, 0.0) == pytest.approx(1)


def test_a_proxy_or_a_link_without_traffic_may_change_its_bandwidth_at_any_time() -> None:
    access = AccessLink()
    for mbit in (5.0, math.inf, 1e-6, 7.0):
        access.change(UpstreamBandwidth(mbit, mbit), 3.0)
    (link,) = links(access, [100], LossModel.RPC)
    assert run([Transfer(link, 875_000, start=3.0)]) == pytest.approx(4.02, abs=0.01)
