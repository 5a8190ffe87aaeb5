"""Robust mean of a round's updates, over a fixed number of buckets: each a weighted mean, with its own buffer.

The nodes of a round are dealt over the buckets at random by a key, so that none can choose its bucket. At the close, a
robust rule makes one vector of the buckets' means, in which each bucket counts the same. Memory use depends on the
number of buckets, not of nodes: hostile nodes spoil as many buckets as they are, at most.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import numpy as np

from hypergpu.common.config.aggregation import AggregationConfig
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.tensors import Flat, Payload
from hypergpu.coordinator.core.model import robust_rules as rules
from hypergpu.coordinator.core.model.aggregation import Parts, StreamingMean, norm, pieces

BLOCK = 1 << 15
"""Floats of each bucket in a block of a rule: 16 buckets take 2 MiB."""


LONGEST = 1e3
"""Largest norm of a bucket's mean, in medians, before a rule sees it; the bound on arrival is far below."""


class Buckets:
    """Assignment of the nodes of a round to buckets.

    Args:
        count: Number of buckets.
        seed: Key of the random order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._round = 0
        self._of: dict[str, int] = {}
        self._spares: list[int] = []

    def begin_round(self, number: int, nodes: Sequence[str]) -> None:
        """Deal the nodes of a round."""
        self._round = number
        order = sorted(nodes, key=lambda node: (KeyedRandom(self._seed, "bucket", number, node).bits(0), node))
        self._of = {node: position % self._count for position, node in enumerate(order)}
        self._spares = list(range(self._count - 1, len(order) - 1, -1))

    def of(self, node: str) -> int:
        """Return the bucket of a node. One that was not dealt gets an empty bucket, as long as there is one."""
        bucket = self._of.get(node)
        if bucket is None:
            key = KeyedRandom(self._seed, "bucket", self._round, node)
            bucket = self._of[node] = self._spares.pop() if self._spares else key.bits(0) % self._count
        return bucket


class BucketedMean:
    """Means of buckets, and the robust rule over them.

    Args:
        size: Floats of an update.
        config: Rule, number of buckets, and number of hostile nodes.
    """

    def __init__(self, size: int, config: AggregationConfig) -> None:
        self._size, self._config = size, config
        self._buckets: dict[int, StreamingMean] = {}
        """Those that have been used; they stay for the next round."""
        self.bucket = 0
        """Bucket of the updates that come next."""

    @property
    def count(self) -> int:
        """Number of updates so far."""
        return sum(bucket.count for bucket in self._buckets.values())

    @property
    def filled(self) -> list[StreamingMean]:
        """Buckets with an update, in the order of their numbers."""
        return [bucket for _, bucket in sorted(self._buckets.items()) if bucket.count]

    def add_parts(self, parts: Parts, weight: float, scale: float = 1.0) -> None:
        """Add one update to its bucket; see `StreamingMean.add_parts`."""
        if self.bucket not in self._buckets:
            self._buckets[self.bucket] = StreamingMean(self._size)
        self._buckets[self.bucket].add_parts(parts, weight, scale)

    def shift(self, start: int, by: Flat, weight: float) -> None:
        """Add to the end of the update that was added last; see `StreamingMean.shift`."""
        self._buckets[self.bucket].shift(start, by, weight)

    def take(self) -> Flat:
        """Return the robust mean. It shares memory with a bucket: call `reset` before the next update.

        Raises:
            ValueError: There are too few updates for the rule.
        """
        means = [bucket.take() for bucket in self.filled]
        if len(means) < self._config.least_updates:
            raise ValueError(f"{len(means)} buckets with updates; the rule needs {self._config.least_updates}")
        return robust_mean(means, self._config)

    @property
    def has_enough(self) -> bool:
        """True if the rule bears its number of hostile nodes among the updates so far."""
        return len(self.filled) >= self._config.least_updates

    def norms(self, mean: Flat) -> tuple[float, float]:
        """Return (mean of |update|² over the updates, |mean|²), given the result of `take`."""
        filled = self.filled
        squares = sum(bucket.norms(mean[:0])[0] * bucket.count for bucket in filled) / self.count
        return squares, filled[0].norms(mean)[1]

    def clear(self, bucket: int) -> None:
        """Remove the updates of a bucket."""
        if bucket in self._buckets:
            self._buckets[bucket].reset()

    def reset(self) -> None:
        """Remove all updates."""
        for bucket in self._buckets.values():
            bucket.reset()


class HeldUpdates:
    """Updates of a round until it ends: added in the order of their nodes' names, they give the same sum always."""

    def __init__(self) -> None:
        self.allocate: Callable[[int], Payload] = _in_memory
        """Function that returns a buffer of some bytes."""
        self._held: dict[str, tuple[Payload, str, float]] = {}

    def hold(self, node: str, payload: Payload, codec: str, weight: float) -> None:
        """Keep a copy of an update of a node."""
        copy = self.allocate(len(payload))
        np.copyto(copy, payload)
        self._held[node] = copy, codec, weight

    def take(self) -> Iterator[tuple[str, Payload, str, float]]:
        """Yield node, payload, codec and weight of the updates in order, and keep them no longer."""
        held, self._held = self._held, {}
        for node in sorted(held):
            yield node, *held.pop(node)

    def clear(self) -> None:
        """Keep none."""
        self._held = {}


def _in_memory(nbytes: int) -> Payload:
    return np.empty(nbytes, np.uint8)


class RoundMeans:
    """Means of the rounds of a run, one for each fragment.

    Args:
        sizes: Floats of the updates of each fragment.
        config: How the updates of a round become one.
        seed: Key of the assignment to buckets.
    """

    def __init__(self, sizes: Sequence[int], config: AggregationConfig, seed: int) -> None:
        self._sizes, self._config = sizes, config
        self._buckets = Buckets(config.buckets, seed)
        self._means: dict[int, StreamingMean | BucketedMean] = {}
        self.fragment = 0
        """Fragment of the round."""
        self.held = HeldUpdates()
        """Updates that wait for the end of the round, where they are added in order."""
        self.receiver: Callable[[Flat], None] | None = None
        """Receiver of the mean of each round, which is overwritten when it returns."""

    @property
    def current(self) -> StreamingMean | BucketedMean:
        """Mean of the round's updates."""
        mean = self._means.get(self.fragment)
        if mean is None:
            size, robust = self._sizes[self.fragment], self._config.is_robust
            mean = self._means[self.fragment] = BucketedMean(size, self._config) if robust else StreamingMean(size)
        return mean

    def take(self) -> Flat:
        """Return the mean of the round, and let the receiver have it. It shares memory with the sum.

        Raises:
            ValueError: No update was added.
        """
        mean = self.current.take()
        if self.receiver is not None:
            self.receiver(mean)
        return mean

    def begin_round(self, fragment: int, number: int, nodes: Sequence[str]) -> None:
        """Take updates of a fragment, mostly of these nodes."""
        self.fragment = fragment
        if self._config.is_robust:
            self._buckets.begin_round(number, nodes)

    def mean_for(self, node: str) -> StreamingMean | BucketedMean:
        """Return the mean that the next update, one of this node, belongs to."""
        mean = self.current
        if isinstance(mean, BucketedMean):
            mean.bucket = self._buckets.of(node)
        return mean

    def without(self, nodes: Sequence[str]) -> str:
        """Remove the buckets of these nodes; return why the mean may not be used, if it has none."""
        mean = self.current
        if isinstance(mean, BucketedMean):
            for node in nodes:
                mean.clear(self._buckets.of(node))
            return ""
        if not nodes:
            return ""
        return f"the mean contains what {', '.join(sorted(nodes))} sent"

    @property
    def missing(self) -> str:
        """Reason for which there are too few updates for a step; empty if there are enough, or none."""
        mean = self.current
        if not isinstance(mean, BucketedMean) or not mean.count or mean.has_enough:
            return ""
        least, byzantine = self._config.least_updates, self._config.byzantine
        return f"{len(mean.filled)} updates, and {least} are needed to bear {byzantine} hostile nodes"


def robust_mean(means: Sequence[Flat], config: AggregationConfig) -> Flat:
    """Return the rule's result over vectors, which it may change; the result is in the first of them."""
    _shorten(means)
    count, byzantine = len(means), config.byzantine
    mixing = np.eye(count)
    products = None
    if config.nearest_neighbors or config.rule not in ("trimmed_mean", "median"):
        products = rules.inner_products((block for _, block in _blocks(means)), count)
    if config.nearest_neighbors and products is not None:
        mixing = rules.nearest_neighbor_weights(rules.squared_distances(products)[:count, :count], byzantine)
        with_origin = np.eye(count + 1)
        with_origin[:count, :count] = mixing
        products = with_origin @ products @ with_origin.T
    if config.rule in ("trimmed_mean", "median"):
        trimmed = byzantine if config.rule == "trimmed_mean" else (count - 1) // 2
        return _by_coordinate(means, mixing if config.nearest_neighbors else None, trimmed)
    assert products is not None
    return _weighted(means, _weights(config, products) @ mixing)


def _weights(config: AggregationConfig, products: rules.Matrix) -> rules.Matrix:
    """Return the weights of vectors in the result of a rule that is a weighted sum."""
    count = len(products) - 1
    squared = rules.squared_distances(products)
    if config.rule == "multi_krum":
        return rules.multi_krum_weights(squared[:count, :count], config.byzantine)
    if config.rule == "geometric_median":
        return rules.geometric_median_weights(
            products, rules.SMOOTHING * float(np.median(np.sqrt(squared[count, :count])))
        )
    centre, radius = rules.most_central(squared[:count, :count])
    return rules.clipping_weights(products, np.eye(count + 1)[centre], radius)


def _shorten(vectors: Sequence[Flat]) -> None:
    """Shorten huge vectors, whose products would leave the range of float32, or the others no digits."""
    norms = [norm(pieces(vector)) for vector in vectors]
    longest = LONGEST * median(each if math.isfinite(each) else math.inf for each in norms)
    for vector, length in zip(vectors, norms, strict=True):
        if not math.isfinite(length):
            vector.fill(0.0)
        elif length > longest:
            np.multiply(vector, np.float32(longest / length), out=vector)


def _blocks(vectors: Sequence[Flat]) -> Iterator[tuple[int, Flat]]:
    """Yield vectors in blocks of shape (vectors, floats), with the index of the first float.

    They share memory with each other: a new array for each would cost as much time as the rules.
    """
    size = len(vectors[0])
    scratch = np.empty((len(vectors), min(BLOCK, size)), np.float32)
    for start in range(0, size, BLOCK):
        block = scratch[:, : size - start]
        for row, vector in zip(block, vectors, strict=True):
            row[:] = vector[start : start + BLOCK]
        yield start, block


def _by_coordinate(vectors: Sequence[Flat], mixing: rules.Matrix | None, trimmed: int) -> Flat:
    mix = None if mixing is None else mixing.astype(np.float32)
    for start, block in _blocks(vectors):
        mixed = block if mix is None else rules.combine(mix, block)
        vectors[0][start : start + block.shape[1]] = rules.trimmed_mean(list(mixed), trimmed)
    return vectors[0]


def _weighted(vectors: Sequence[Flat], weights: rules.Matrix) -> Flat:
    factors = weights.astype(np.float32)[None, :]
    for start, block in _blocks(vectors):
        vectors[0][start : start + block.shape[1]] = rules.combine(factors, block)[0]
    return vectors[0]
