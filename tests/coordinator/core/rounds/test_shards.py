"""Shards and deadlines."""

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.statistics import median_and_mad
from hypergpu.coordinator.core.rounds.deadlines import (
    MAX_EMPTY_ROUND_SECONDS,
    Deadline,
    DeadlineEstimator,
    DeadlineReason,
)
from hypergpu.coordinator.core.rounds.shards import ShardTable


def deadline_of(deadlines: DeadlineEstimator, nodes: Iterable[str], wait_for: Sequence[str] = ()) -> Deadline:
    return deadlines.deadline(dict.fromkeys(nodes, 1), wait_for)


NODES = st.lists(st.sampled_from([f"n{i}" for i in range(12)]), unique=True, max_size=12)


@given(st.lists(NODES, max_size=10), st.integers(1, 20))
def test_every_shard_has_an_owner_and_progress_is_kept(deals: list[list[str]], most: int) -> None:
    table = ShardTable(most)
    for nodes in deals:
        before = [table.shard_of(n) for n in nodes if n in table._owners] if table.count else []
        used = sum(table._cursors)
        table.deal(nodes)
        assert table.count == min(len(nodes), most)
        shards = {n: table.shard_of(n) for n in nodes}
        assert {s.index for s in shards.values()} == set(range(table.count))
        if before and table.count == before[0].count:
            kept = [n for n in nodes if any(s.index == shards[n].index for s in before)]
            assert len(kept) >= min(1, len(before))
        else:
            assert all(s.cursor == used // table.count for s in shards.values())
        for shard in shards.values():
            table.advance(shard, 10)


def test_a_node_keeps_its_shard_when_another_is_replaced() -> None:
    table = ShardTable()
    table.deal(["a", "b", "c"])
    c = table.shard_of("c")
    table.advance(c, 64)
    assert table.deal(["a", "c", "d"])
    assert table.shard_of("c").index == c.index
    assert table.shard_of("c").cursor == 64
    assert table.shard_of("d").index == 1
    assert not table.deal(["d", "c", "a"])


def test_an_answer_to_an_older_cut_moves_no_cursor_and_replays_move_it_once() -> None:
    table = ShardTable()
    table.deal(["a", "b"])
    old = table.shard_of("a")
    table.advance(old, 10)
    table.advance(old, 10)
    assert table.shard_of("a").cursor == 10
    table.deal(["a", "b", "c"])
    table.advance(old, 10)
    assert {table.shard_of(n).cursor for n in "abc"} == {3}


def test_the_data_of_nodes_that_are_left_out_is_trained_by_those_that_are_ahead() -> None:
    table = ShardTable(most=40)  # ten samples a shard
    table.deal("abcd")
    taken: set[int] = set()
    for number in range(8):
        shards = table.assign("ab")
        if number == 0:
            assert [shards[n] for n in "ab"] == [table.shard_of(n) for n in "ab"], "while nobody lags, each its own"
        taken |= {shard.index for shard in shards.values()}
        for shard in shards.values():
            table.advance(shard, 10)
    assert taken == {0, 1, 2, 3}
    assert max(table._cursors) - min(table._cursors) <= 20


@given(st.integers(1, 10), st.data())
def test_a_round_trains_each_shard_once_and_the_lag_is_bounded(count: int, data: st.DataObject) -> None:
    table = ShardTable(most=10 * count)
    nodes = [f"n{i}" for i in range(count)]
    table.deal(nodes)
    chosen = data.draw(st.lists(st.sampled_from(nodes), unique=True, min_size=1))
    speeds = {node: data.draw(st.integers(1, 10)) for node in nodes}
    for _ in range(20 * count):
        shards = table.assign(chosen)
        assert len({s.index for s in shards.values()}) == len(chosen) == len(shards)
        for node, shard in shards.items():
            table.advance(shard, speeds[node])
        assert max(table._cursors) - min(table._cursors) <= 3 * 10, "about a pass, whatever the nodes' speeds"


def test_snapshots() -> None:
    table = ShardTable()
    table.deal(["a", "b"])
    table.advance(table.shard_of("b"), 7)
    again = ShardTable()
    again.restore(table.snapshot())
    assert [again.shard_of(n) for n in "ab"] == [table.shard_of(n) for n in "ab"]


def test_median_and_mad() -> None:
    assert median_and_mad([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0)


def test_a_node_far_outside_what_is_usual_is_not_waited_for() -> None:
    deadlines = DeadlineEstimator(mads=4)
    for node, seconds in {"a": 1.0, "b": 1.1, "c": 1.2, "d": 1.3, "slow": 60.0}.items():
        for _ in range(5):
            deadlines.observe(node, seconds)
    deadline = deadline_of(deadlines, ["a", "b", "c", "d", "slow"])
    assert deadline.reason is DeadlineReason.MEASURED
    assert 2.0 < deadline.seconds < 5.0


def test_a_node_that_is_sometimes_slow_gets_its_slow_times() -> None:
    deadlines = DeadlineEstimator(mads=4)
    for seconds in (1, 4, 1, 4, 1, 4, 1, 4, 1):
        deadlines.observe("moody", float(seconds))
    assert deadline_of(deadlines, ["moody"]).seconds == 4.0
    deadlines.forget("moody")
    assert deadline_of(deadlines, ["moody"]).reason is DeadlineReason.NOT_MEASURED


def test_a_node_whose_turn_it_is_gets_its_time() -> None:
    deadlines = DeadlineEstimator()
    for node in "abcde":
        deadlines.observe(node, 1.0)
    deadlines.observe("slow", 7.0)
    everybody = [*"abcde", "slow"]
    assert deadline_of(deadlines, everybody).seconds == 2.25
    assert deadline_of(deadlines, everybody, ["slow"]).seconds == 10.5, "half as much again as it usually takes"
    assert deadline_of(deadlines, everybody, ["new"]).seconds == 2.25


def test_a_node_with_more_work_than_before_gets_more_time() -> None:
    deadlines = DeadlineEstimator()
    deadlines.observe("a", 1.0, compute_seconds=0.5, samples=100)
    assert deadlines.need("a", 100) == deadlines.need("a", 10) == 1.5
    assert deadlines.need("a", 300) == 2.5, "computing takes thrice as long"
    deadlines.observe("b", 1.0, compute_seconds=0.5, samples=100)
    assert deadlines.deadline({"a": 300, "b": 300}).seconds == 2.5
    assert deadlines.deadline({"a": 100, "b": 100}, ["a"]).seconds == 1.5
    deadlines.observe("idle", 1.0)
    assert deadlines.need("idle", 100) == 1.5, "nothing is known of its computing"


def test_newcomers_get_time() -> None:
    deadlines = DeadlineEstimator()
    for node in "abc":
        deadlines.observe(node, 1.0)
    usual = deadline_of(deadlines, ["a", "b", "c"]).seconds
    deadline = deadline_of(deadlines, ["a", "b", "c", "new"])
    assert deadline.reason is DeadlineReason.NEWCOMERS
    assert (deadline.seconds, deadline.shortest_seconds) == (4 * usual, usual)


def unmeasured(seconds: float, reason: DeadlineReason = DeadlineReason.NOT_MEASURED) -> Deadline:
    return Deadline(seconds, reason, shortest_seconds=0.0)


def test_the_first_deadline_is_longer_where_transfers_take_longer() -> None:
    deadlines = DeadlineEstimator()
    work = {"a": 8, "b": 8}
    assert deadlines.deadline(work, (), {"a": 299.0, "c": 5000.0}) == unmeasured(600.0)
    assert deadlines.deadline(work, (), {"a": 301.0, "b": 10.0}) == unmeasured(602.0, DeadlineReason.TRANSFERS)
    assert deadlines.deadline(work, (), {"a": 1e9}).seconds == MAX_EMPTY_ROUND_SECONDS
    deadlines.record_empty_round(2000.0)
    assert deadlines.deadline(work, (), {"a": 301.0}) == unmeasured(1000.0)
    deadlines.observe("a", 10.0)
    deadlines.observe("b", 10.0)
    assert deadlines.deadline(work, (), {"a": 5000.0}).reason is DeadlineReason.MEASURED
