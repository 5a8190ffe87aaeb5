"""Fragments of a model: each parameter is in exactly one, whole layers together, of about equal size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import InvalidInput
from hypergpu.common.fragments import Fragments
from hypergpu.common.tensors import Manifest, TensorSpec

SHAPES = st.lists(st.integers(1, 40), min_size=2, max_size=12)


def manifest(sizes: list[int], state: int = 0) -> Manifest:
    specs = [TensorSpec(f"layer{index}.weight", (size,)) for index, size in enumerate(sizes)]
    return Manifest((*specs, TensorSpec("norm.running_mean", (state,))) if state else tuple(specs))


@given(SHAPES, st.integers(2, 4), st.integers(0, 3))
def test_each_parameter_is_in_one_fragment_and_the_state_in_none(sizes: list[int], count: int, state: int) -> None:
    count = min(count, len(sizes))
    fragments = Fragments(manifest(sizes, state), sum(sizes), count)
    places = np.arange(sum(sizes) + state, dtype=np.float32)
    parts = [fragments.take(places, (fragment,)) for fragment in range(count)]
    ends = [part[len(part) - state :] for part in parts]
    assert all(np.array_equal(end, places[sum(sizes) :]) for end in ends)
    held = sorted(value for part in parts for value in part[: len(part) - state])
    assert held == list(range(sum(sizes)))
    assert [len(part) - state for part in parts] == [fragments.size((fragment,)) for fragment in range(count)]


@given(SHAPES, st.integers(2, 4))
def test_the_largest_fragment_is_at_most_a_third_larger_than_it_must_be(sizes: list[int], count: int) -> None:
    count = min(count, len(sizes))
    fragments = Fragments(manifest(sizes), sum(sizes), count)
    ordered = sorted(sizes, reverse=True)
    least = max(sum(sizes) / count, ordered[0], sum(ordered[count - 1 : count + 1]) if len(sizes) > count else 0)
    assert fragments.size((fragments.largest,)) <= 4 / 3 * least


@given(SHAPES, st.integers(2, 4), st.data())
def test_what_was_taken_is_put_back_in_its_place(sizes: list[int], count: int, data: st.DataObject) -> None:
    count = min(count, len(sizes))
    which = data.draw(st.lists(st.sampled_from(range(count)), unique=True, min_size=1))
    fragments = Fragments(manifest(sizes, 2), sum(sizes), count)
    flat, other = np.arange(sum(sizes) + 2, dtype=np.float32), np.full(sum(sizes) + 2, -1, np.float32)
    fragments.put(fragments.take(flat, which), other, which)
    rest = [each for each in range(count) if each not in which]
    assert np.array_equal(fragments.take(other, which), fragments.take(flat, which))
    untouched = fragments.take(other, rest)[:-2] if rest else np.empty(0)
    assert (untouched == -1).all()


def test_layers_of_equal_size_are_dealt_in_strided_order_with_their_tensors_together() -> None:
    specs = [
        TensorSpec(f"block{block}.{name}", (size,)) for block in range(6) for name, size in (("weight", 6), ("bias", 2))
    ]
    fragments = Fragments(Manifest(tuple(specs)), 48, 3)
    block_of = np.repeat(np.arange(6, dtype=np.float32), 8)
    found = [sorted(set(fragments.take(block_of, (fragment,)))) for fragment in range(3)]
    assert found == [[0, 3], [1, 4], [2, 5]]


def test_tensors_are_dealt_alone_where_there_are_too_few_layers() -> None:
    fragments = Fragments(Manifest((TensorSpec("fc.weight", (6,)), TensorSpec("fc.bias", (2,)))), 8, 2)
    assert [fragments.size((each,)) for each in (0, 1)] == [6, 2]
    assert fragments.largest == 0


def test_more_fragments_than_tensors_are_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidInput, match=r"training.fragments is 3, and the model has 2 trainable tensors: take 2"):
        Fragments(manifest([4, 4]), 8, 3)
