"""Shards of nodes that hold their own samples."""

from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config import TrainingConfig
from hypergpu.common.data_report import DataReport
from hypergpu.coordinator.core.rounds.local_shards import LocalShards, data_weights, make_shards
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.rounds.shards import ShardTable

NODES = st.lists(st.sampled_from([f"n{i}" for i in range(6)]), unique=True, min_size=1, max_size=6)


@given(st.lists(st.tuples(NODES, st.integers(1, 50)), min_size=1, max_size=20))
def test_no_node_ever_gets_the_shard_of_another_and_each_continues_where_it_stopped(
    rounds: list[tuple[list[str], int]],
) -> None:
    shards, owners, used = LocalShards(), dict[str, int](), dict[str, int]()
    for nodes, samples in rounds:
        shards.deal(nodes)
        for node, shard in shards.assign(nodes).items():
            assert shard.owner == node
            assert owners.setdefault(node, shard.index) == shard.index
            assert shard.cursor == used.get(node, 0) == shards.samples_used(node)
            shards.advance(shard, samples)
            shards.advance(shard, samples)  # a replay
            used[node] = used.get(node, 0) + samples
        restored = LocalShards()
        restored.restore(shards.snapshot())
        assert restored.snapshot() == shards.snapshot()
        shards = restored
    assert len(set(owners.values())) == len(owners)


def test_a_shard_far_behind_is_trained_by_nobody_else() -> None:
    for shards, owner_of_b in ((make_shards(TrainingConfig(partition="local"), 0, 10), "b"), (ShardTable(20), "a")):
        shards.deal(["a", "b"])
        for _ in range(10):
            shards.advance(shards.shard_of("a"), 20)
        behind = shards.shard_of("b").index
        trained = {shard.index: node for node, shard in shards.assign(["a", "b"]).items()}
        assert trained[behind] == owner_of_b


def test_the_cursors_of_nodes_that_are_gone_are_bounded() -> None:
    shards = LocalShards(most=3)
    for number in range(10):
        shards.deal(["stays", f"passes_{number}"])
        shards.advance(shards.shard_of("stays"), 5)
        shards.advance(shards.shard_of(f"passes_{number}"), 7)
    assert shards.count == 3
    assert shards.samples_used("stays") == 50
    assert shards.samples_used("passes_9") == 7
    assert shards.samples_used("passes_0") == 0


def test_updates_weigh_by_the_samples_held_and_alike_where_nobody_tells() -> None:
    members = {name: Member(name, data=data) for name, data in (("a", DataReport(30)), ("b", DataReport(90)))}
    members["c"] = Member("c")
    assert data_weights(members, ["a", "b"]) == {"a": 30, "b": 90}
    assert data_weights(members, ["a", "b", "c"]) == {"a": 30, "b": 90, "c": 60}
    assert data_weights({"c": members["c"], "d": Member("d")}, ["c", "d"]) == {"c": 1, "d": 1}
