"""Keyed draws: reproducible, independent of one another, and of the distributions they claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.keyed_random import BufferedKeyedRandom, KeyedRandom

KEYS = st.lists(st.text(max_size=8) | st.integers(0, 1000), min_size=1, max_size=3)


@given(seed=st.integers(0, 2**63), key=KEYS, index=st.integers(0, 2**40))
def test_a_draw_depends_on_seed_key_and_index_alone(seed: int, key: list[str | int], index: int) -> None:
    first, second = KeyedRandom(seed, *key), KeyedRandom(seed, *key)
    second.uniform(index + 1)
    second.normal(3)
    assert first.uniform(index) == second.uniform(index)
    assert 0 <= first.uniform(index) < 1


def test_other_seeds_keys_and_types_give_other_streams() -> None:
    streams = [
        KeyedRandom(1, "a"),
        KeyedRandom(2, "a"),
        KeyedRandom(1, "b"),
        KeyedRandom(1, "a", "b"),
        KeyedRandom(1, "ab"),
        KeyedRandom(1, 7),
        KeyedRandom(1, "7"),
    ]
    assert len({stream.bits(0) for stream in streams}) == len(streams)


def test_many_at_once_are_the_same_draws() -> None:
    draws = KeyedRandom(9, "link")
    assert draws.uniforms(5, 100).tolist() == [draws.uniform(5 + i) for i in range(100)]
    assert draws.normals(5, 1000) == [draws.normal(5 + i) for i in range(1000)]


@given(seed=st.integers(0, 2**63), start=st.integers(0, 2**30), steps=st.lists(st.integers(-3, 300), max_size=40))
def test_draws_in_order_are_the_same_draws_also_where_the_order_is_broken(
    seed: int, start: int, steps: list[int]
) -> None:
    one_by_one, in_blocks, index = KeyedRandom(seed, "link"), BufferedKeyedRandom(seed, "link"), start
    for step in steps:
        index = max(0, index + step)
        assert in_blocks.uniform(index) == one_by_one.uniform(index)


def test_the_distributions_have_their_moments() -> None:
    draws, count = KeyedRandom(3, "moments"), 20_000
    uniform = draws.uniforms(0, count)
    normal = np.array([draws.normal(i) for i in range(count)])
    exponential = np.array([draws.exponential(i) for i in range(count)])
    # Each within five standard errors of its mean; a shifted or clipped stream is far outside.
    assert uniform.mean() == pytest.approx(0.5, abs=5 * 0.2887 / count**0.5)
    assert normal.mean() == pytest.approx(0.0, abs=5 / count**0.5)
    assert normal.std() == pytest.approx(1.0, abs=0.03)
    assert exponential.mean() == pytest.approx(1.0, abs=5 / count**0.5)


def test_neighbouring_keys_are_uncorrelated() -> None:
    one, two = (KeyedRandom(0, "node", i).uniforms(0, 10_000) for i in (1, 2))
    assert abs(float(np.corrcoef(one, two)[0, 1])) < 0.05


def test_a_generator_is_reproducible() -> None:
    first, second = (KeyedRandom(4, "x").generator().permutation(10).tolist() for _ in range(2))
    assert first == second
