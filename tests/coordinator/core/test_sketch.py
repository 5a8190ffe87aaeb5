"""Sketches keep norms and cosines, whatever the parts that an update comes in."""

import numpy as np
import pytest

from hypergpu.common.tensors import Flat
from hypergpu.coordinator.core.model.sketch import _PERIOD, WIDTH, Sketcher

SIZE = 2 * _PERIOD + 3 * WIDTH + 5


def normal(seed: int, size: int = SIZE) -> Flat:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def sketch(update: Flat, key: int = 1, part: int = 1 << 16) -> Flat:
    sketcher, found = Sketcher(key), np.zeros(WIDTH, np.float32)
    for start in range(0, len(update), part):
        sketcher.add(found, start, update[start : start + part])
    return found


def cosine(one: Flat, other: Flat) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_a_sketch_does_not_depend_on_the_parts() -> None:
    update = normal(0)
    for part in (SIZE, 1000, WIDTH, _PERIOD, 77_777):
        np.testing.assert_allclose(sketch(update, part=part), sketch(update), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [10, WIDTH, WIDTH + 1, SIZE])
def test_a_sketch_keeps_norms(size: int) -> None:
    update = normal(1, size)
    assert np.linalg.norm(sketch(update)) == pytest.approx(np.linalg.norm(update), rel=0.15)


def test_sketches_keep_cosines() -> None:
    one, other = normal(2), normal(3)
    for share in (-1.0, -0.5, 0.0, 0.5, 0.9, 1.0):
        mixed = share * one + np.sqrt(1 - share**2) * other
        assert cosine(sketch(one), sketch(mixed)) == pytest.approx(share, abs=0.15)


def test_values_in_one_column_do_not_cancel_or_add_up() -> None:
    columns = np.zeros(SIZE, np.float32)
    columns[::WIDTH] = 1.0  # every one in the same sum
    found = [float(np.linalg.norm(sketch(columns, key))) for key in range(40)]
    assert np.mean(np.square(found)) == pytest.approx(np.sum(columns), rel=0.6)


def test_another_secret_gives_another_sketch() -> None:
    update = normal(4)
    assert abs(cosine(sketch(update, 1), sketch(update, 2))) < 0.2
