import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.tasks.partition import ShardOrder, partition

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
    shards = partition(scheme, LABELS, count, seed, alpha=alpha)
    assert len(shards) == count
    assert min(map(len, shards)) > 0
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(200))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_the_seed_alone_decides(scheme: str) -> None:
    first, again, other = (partition(scheme, LABELS, 5, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_smaller_alpha_is_more_skewed() -> None:
    def skew(alpha: float) -> float:
        shards = partition("dirichlet", LABELS, 5, 0, alpha=alpha)
        return float(np.mean([np.bincount(LABELS[s], minlength=7).max() / len(s) for s in shards]))

    assert skew(0.05) > 0.5 > skew(100)


def test_iid_shards_differ_by_one_sample_at_most() -> None:
    sizes = [len(s) for s in partition("iid", 103, 10, 0)]
    assert max(sizes) - min(sizes) == 1


@pytest.mark.parametrize("count", [0, -1, 201])
def test_an_impossible_number_of_shards(count: int) -> None:
    with pytest.raises(InvalidInput, match="200 samples"):
        partition("iid", LABELS, count, 0)


def test_bad_scheme_and_alpha() -> None:
    with pytest.raises(UnknownName, match="dirichlet"):
        partition("dirichlt", LABELS, 2, 0)
    with pytest.raises(InvalidInput, match="alpha"):
        partition("dirichlet", LABELS, 2, 0, alpha=0)


@given(size=st.integers(1, 40), pieces=st.lists(st.integers(0, 30), max_size=20), seed=st.integers(0, 9))
def test_the_cursor_makes_the_order_one_stream(size: int, pieces: list[int], seed: int) -> None:
    """However it is cut into units of work, the order is the same, and each epoch holds each sample once."""
    indices = np.arange(100, 100 + size)
    order, whole = ShardOrder(indices, seed, 1), ShardOrder(indices, seed, 1).take(0, sum(pieces))
    taken, cursor = [], 0
    for piece in pieces:
        taken.append(order.take(cursor, piece))
        cursor += piece
    assert np.array_equal(np.concatenate(taken) if taken else whole, whole)
    for epoch in range(len(whole) // size):
        assert np.array_equal(np.sort(whole[epoch * size : (epoch + 1) * size]), indices)


def test_epochs_and_shards_are_ordered_differently() -> None:
    indices = np.arange(50)
    first = ShardOrder(indices, 0, 0)
    assert not np.array_equal(first.take(0, 50), first.take(50, 50))
    assert not np.array_equal(first.take(0, 50), ShardOrder(indices, 0, 1).take(0, 50))
