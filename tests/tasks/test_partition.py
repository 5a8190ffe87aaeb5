import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.tasks.partition import ShardOrder, dirichlet, partition

LABELS = np.arange(200) % 7


@given(
    scheme=st.sampled_from(["iid", "dirichlet"]),
    count=st.integers(1, 60),
    seed=st.integers(0, 2**40),
    alpha=st.floats(0.01, 100),
)
def test_every_sample_is_in_exactly_one_shard_and_no_shard_is_empty(
    scheme: str, count: int, seed: int, alpha: float
) -> None:
    dealt = partition(scheme, LABELS, count, seed, alpha=alpha)
    sizes = [dealt.size(shard) for shard in range(count)]
    assert min(sizes) > 0
    for epoch in (0, 1, 7):
        shards = [dealt.epoch(shard, epoch) for shard in range(count)]
        assert list(map(len, shards)) == sizes
        assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(200))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_the_seed_alone_decides(scheme: str) -> None:
    first, again, other = (
        [dealt.epoch(shard, 2) for shard in range(5)]
        for dealt in (partition(scheme, LABELS, 5, seed) for seed in (3, 3, 4))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_deals_all_samples_anew_in_each_epoch() -> None:
    dealt = partition("iid", 1000, 5, 0)
    seen = [set(dealt.epoch(2, epoch).tolist()) for epoch in range(12)]
    assert len(set.union(*seen)) > 900, "1 - 0.8^12 of all samples, not the same fifth"
    assert 20 < len(seen[0] & seen[1]) < 60, "a fifth of a fifth"


def test_skewed_shards_keep_their_samples() -> None:
    dealt = partition("dirichlet", LABELS, 5, 0)
    assert set(dealt.epoch(2, 0)) == set(dealt.epoch(2, 9))


def test_epochs_may_be_read_in_any_order() -> None:
    dealt, again = partition("iid", 100, 4, 1), partition("iid", 100, 4, 1)
    later = again.epoch(3, 5)
    assert np.array_equal(dealt.epoch(3, 5), later)
    assert np.array_equal(dealt.epoch(0, 1), again.epoch(0, 1))


def test_a_smaller_alpha_is_more_skewed() -> None:
    def skew(alpha: float) -> float:
        shards = dirichlet(LABELS, 5, 0, alpha)
        return float(np.mean([np.bincount(LABELS[s], minlength=7).max() / len(s) for s in shards]))

    assert skew(0.05) > 0.5 > skew(100)


def test_iid_shards_differ_by_one_sample_at_most() -> None:
    dealt = partition("iid", 103, 10, 0)
    sizes = [dealt.size(shard) for shard in range(10)]
    assert max(sizes) - min(sizes) == 1
    assert sum(sizes) == 103


@pytest.mark.parametrize("count", [0, -1, 201])
def test_an_impossible_number_of_shards(count: int) -> None:
    with pytest.raises(InvalidInput, match="200 samples"):
        partition("iid", LABELS, count, 0)


def test_bad_scheme_and_alpha() -> None:
    with pytest.raises(UnknownName, match="dirichlet"):
        partition("dirichlt", LABELS, 2, 0)
    with pytest.raises(InvalidInput, match="alpha"):
        partition("dirichlet", LABELS, 2, 0, alpha=0)


@given(
    scheme=st.sampled_from(["iid", "dirichlet"]),
    pieces=st.lists(st.integers(0, 90), max_size=20),
    seed=st.integers(0, 9),
)
def test_the_cursor_makes_the_order_one_stream(scheme: str, pieces: list[int], seed: int) -> None:
    """However it is cut into work units, the order is the same, and each epoch holds each sample of the shard once."""
    dealt = partition(scheme, LABELS, 4, seed)
    order, whole = ShardOrder(dealt, 1), ShardOrder(dealt, 1).take(0, sum(pieces))
    taken, cursor = [], 0
    for piece in pieces:
        taken.append(order.take(cursor, piece))
        cursor += piece
    assert np.array_equal(np.concatenate(taken) if taken else whole, whole)
    size = dealt.size(1)
    for epoch in range(len(whole) // size):
        assert np.array_equal(whole[epoch * size : (epoch + 1) * size], dealt.epoch(1, epoch))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_epochs_and_shards_are_ordered_differently(scheme: str) -> None:
    dealt = partition(scheme, LABELS, 2, 0)
    size = dealt.size(0)
    first = ShardOrder(dealt, 0)
    assert not np.array_equal(first.take(0, size), first.take(size, size))
    assert not np.array_equal(first.take(0, 20), ShardOrder(dealt, 1).take(0, 20))
