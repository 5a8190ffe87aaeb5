"""Robust rules: functions of a few vectors whose result no minority of them can move far.

All but the coordinate-wise ones are weighted sums. Their weights follow from the inner products of the vectors, which
one pass over blocks finds; a second pass adds. So a rule costs two passes, however many steps it takes.

Sources: Yin et al., "Byzantine-robust distributed learning", ICML 2018 (trimmed mean, median); Blanchard et al.,
"Machine learning with adversaries", NeurIPS 2017 (multi-Krum); Karimireddy et al., "Learning from history", ICML 2021
(centred clipping); Pillutla et al., "Robust aggregation for federated learning", 2022 (geometric median); Allouah et
al., "Fixing by mixing", AISTATS 2023 (nearest-neighbour mixing). The functions equal those of ByzFL 0.0.11.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from hypergpu.common.tensors import Flat

Matrix = npt.NDArray[np.float64]
TILE: Final = 512
"""Floats of each vector in one matrix product."""
ITERATIONS: Final = 10
"""Steps of the geometric median; each costs nothing beside the passes over the vectors."""
CLIPPINGS: Final = 5
"""Steps of centred clipping."""
_TINY: Final = 1e-30
"""Distance below which vectors are the same."""
SMOOTHING: Final = 1e-3
"""Smallest distance in the geometric median, in median norms."""


def inner_products(blocks: Iterator[Flat], count: int) -> Matrix:
    """Return inner products of vectors and the origin, which comes last; shape (count + 1, count + 1).

    The vectors come in blocks of shape (count, floats). Products are taken from the smallest vector of a block: so the
    differences of vectors that are alike keep their digits, even beside a huge one.
    """
    products = np.zeros((count + 1, count + 1))
    for block in blocks:
        points = np.concatenate([block, np.zeros((1, block.shape[1]), np.float32)])
        points -= block[int(np.argmin(np.einsum("ij,ij->i", block, block)))]
        for tiles in _tiles(points):
            products += np.matmul(tiles, tiles.transpose(0, 2, 1)).sum(axis=0)
    return products


def combine(weights: Flat, block: Flat) -> Flat:
    """Return weighted sums of vectors; `weights` has a row for each."""
    sums = np.empty((len(weights), block.shape[1]), np.float32)
    for tiles, into in zip(_tiles(block), _tiles(sums), strict=True):
        np.matmul(weights, tiles, out=into)
    return sums


def _tiles(block: Flat) -> Iterator[Flat]:
    """Yield a block of vectors as stacks of narrow matrices, and its rest.

    A matrix product of their size does not leave its thread: others take ten times as long beside busy processes.
    """
    whole = block.shape[1] // TILE * TILE
    if whole:
        yield block[:, :whole].reshape(len(block), -1, TILE).transpose(1, 0, 2)
    if whole < block.shape[1]:
        yield block[None, :, whole:]


def squared_distances(products: Matrix) -> Matrix:
    """Return squared distances of vectors, from their inner products."""
    squares = np.diag(products)
    distances: Matrix = np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def nearest_neighbor_weights(distances: Matrix, byzantine: int) -> Matrix:
    """Return the matrix that replaces each vector by the mean of the `n - byzantine` nearest ones, itself included."""
    count = len(distances)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : count - byzantine]
    weights = np.zeros_like(distances)
    np.put_along_axis(weights, nearest, 1.0 / (count - byzantine), axis=1)
    return weights


def multi_krum_weights(distances: Matrix, byzantine: int) -> Matrix:
    """Return the weights of the mean of those `n - byzantine` vectors that are closest to their neighbours."""
    count = len(distances)
    scores = np.sort(distances, axis=1)[:, 1 : count - byzantine].mean(axis=1)
    weights = np.zeros(count)
    weights[np.argsort(scores, kind="stable")[: count - byzantine]] = 1.0 / (count - byzantine)
    return weights


def geometric_median_weights(products: Matrix, smoothing: float, iterations: int = ITERATIONS) -> Matrix:
    """Return the weights of the point with the least sum of distances, by Weiszfeld's steps from the origin.

    Args:
        products: Inner products of the vectors and the origin.
        smoothing: Distances below count as this much.
        iterations: Number of steps.
    """
    weights = np.zeros(len(products))
    weights[-1] = 1.0  # the origin
    for _ in range(iterations):
        inverse = 1.0 / np.maximum(_distances_from(products, weights), max(smoothing, _TINY))
        weights = np.append(inverse / inverse.sum(), 0.0)
    return weights[:-1]


def clipping_weights(products: Matrix, centre: Matrix, radius: float, iterations: int = CLIPPINGS) -> Matrix:
    """Return the weights of a centre that is moved by the mean of the differences to it, each clipped to a radius.

    Args:
        products: Inner products of the vectors and the origin.
        centre: Weights of the first centre over the same points.
        radius: Largest norm of a difference.
        iterations: Number of steps.
    """
    count = len(products) - 1
    weights = centre
    for _ in range(iterations):
        distances = _distances_from(products, weights)
        clip = np.minimum(1.0, radius / np.maximum(distances, _TINY)) / count
        weights = np.append(clip, 0.0) + (1.0 - clip.sum()) * weights
    return weights[:-1]


def most_central(distances: Matrix) -> tuple[int, float]:
    """Return the vector with the smallest median distance to the others, and that distance."""
    middles = [float(np.median(np.delete(row, at))) for at, row in enumerate(np.sqrt(distances))]
    centre = int(np.argmin(middles))
    return centre, middles[centre]


def _distances_from(products: Matrix, weights: Matrix) -> Matrix:
    """Return the distances of the vectors from a weighted sum of all points, whose weights add up to 1."""
    along = products @ weights
    squares = np.diag(products) - 2.0 * along + weights @ along
    distances: Matrix = np.sqrt(np.maximum(squares[:-1], 0.0))
    return distances


def trimmed_mean(rows: Sequence[Flat], byzantine: int) -> Flat:
    """Return the mean of each coordinate without its `byzantine` smallest and largest values; overwrites the rows."""
    ordered = _sorted(rows)[byzantine : len(rows) - byzantine]
    total = ordered[0]
    for row in ordered[1:]:
        total += row
    total *= np.float32(1.0 / len(ordered))
    return total


def median(rows: Sequence[Flat]) -> Flat:
    """Return the median of each coordinate; overwrites the rows."""
    return trimmed_mean(rows, (len(rows) - 1) // 2)


def _sorted(rows: Sequence[Flat]) -> list[Flat]:
    """Return rows sorted in each coordinate, by Batcher's network: in half the time of `numpy.sort` on columns."""
    ordered, spare = list(rows), np.empty_like(rows[0])
    for low, high in _comparators(len(rows)):
        np.minimum(ordered[low], ordered[high], out=spare)
        np.maximum(ordered[low], ordered[high], out=ordered[high])
        ordered[low], spare = spare, ordered[low]
    return ordered


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    """Yield the comparisons of Batcher's odd-even merge sort (Knuth, "The art of computer programming", 5.2.2 M)."""
    part = 1
    while part < count:
        step = part
        while step:
            for start in range(step % part, count - step, 2 * step):
                for low in range(start, min(start + step, count - step)):
                    if low // (2 * part) == (low + step) // (2 * part):
                        yield low, low + step
            step //= 2
        part *= 2
