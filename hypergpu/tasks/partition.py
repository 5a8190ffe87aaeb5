"""Distribution of samples over shards, and the order of samples in a shard. Pure numpy, keyed by seed.

Coordinator and nodes compute the same shards from (scheme, seed, count), so only an index and a cursor travel.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.keyed_random import KeyedRandom

Indices = npt.NDArray[np.int64]

SCHEMES = ("dirichlet", "iid")
LOCAL = "local"
"""Name of the scheme with which each node trains on samples that it alone holds."""


class Partition(ABC):
    """Samples of each shard in each epoch. In an epoch, each sample is in exactly one shard, and no shard is empty."""

    @abstractmethod
    def size(self, shard: int) -> int:
        """Return the number of samples of a shard, the same in each epoch."""

    @abstractmethod
    def epoch(self, shard: int, number: int) -> Indices:
        """Return the samples of a shard in epoch `number`, in the order of training."""


class ReshuffledPartition(Partition):
    """Deals all samples anew in each epoch, at random, to shards whose sizes differ by at most one.

    A node thus sees all of the data over time, and several passes in one round do not overfit its share of it.
    """

    def __init__(self, samples: int, count: int, seed: int) -> None:
        self._samples, self._count, self._seed = samples, count, seed
        self._order: tuple[int, Indices] = -1, np.empty(0, np.int64)

    def size(self, shard: int) -> int:
        """Return the number of samples of a shard."""
        return self._start(shard + 1) - self._start(shard)

    def epoch(self, shard: int, number: int) -> Indices:
        """Return the samples of a shard in epoch `number`."""
        if number != self._order[0]:
            generator = KeyedRandom(self._seed, "partition", "iid", number).generator()
            self._order = number, generator.permutation(self._samples)
        return self._order[1][self._start(shard) : self._start(shard + 1)]

    def _start(self, shard: int) -> int:
        return shard * self._samples // self._count


class FixedPartition(Partition):
    """Shards that keep their samples, with a new order in each epoch."""

    def __init__(self, shards: Sequence[Indices], seed: int) -> None:
        self._shards, self._seed = shards, seed

    def size(self, shard: int) -> int:
        """Return the number of samples of a shard."""
        return len(self._shards[shard])

    def epoch(self, shard: int, number: int) -> Indices:
        """Return the samples of a shard in epoch `number`."""
        return KeyedRandom(self._seed, "order", shard, number).generator().permutation(self._shards[shard])


def partition(scheme: str, labels: Indices | int, count: int, seed: int, *, alpha: float = 0.5) -> Partition:
    """Distribute samples over `count` shards.

    Args:
        scheme: `iid` or `dirichlet`.
        labels: class of each sample, shape (samples,); for `iid` the number of samples suffices.
        count: number of shards.
        seed: selects one of the possible distributions.
        alpha: concentration of `dirichlet`; smaller is more skewed.

    Raises:
        UnknownName: an unknown scheme.
        InvalidInput: more shards than samples, `count` < 1, or no labels for `dirichlet`.
    """
    samples = labels if isinstance(labels, int) else len(labels)
    if not 1 <= count <= samples:
        raise InvalidInput(f"cannot distribute {samples} samples over {count} shards: take 1 to {samples}")
    match scheme:
        case "iid":
            return ReshuffledPartition(samples, count, seed)
        case "dirichlet":
            if isinstance(labels, int):
                raise InvalidInput("a Dirichlet partition needs the class of each sample")
            return FixedPartition(dirichlet(labels, count, seed, alpha), seed)
    raise UnknownName("partition", scheme, SCHEMES)


def dirichlet(labels: Indices, count: int, seed: int, alpha: float) -> Sequence[Indices]:
    """Split each class over the shards in proportions drawn from Dirichlet(alpha).

    Hsu, Qi & Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019. A shard left empty takes one sample from the largest.

    Raises:
        InvalidInput: alpha ≤ 0.
    """
    if not alpha > 0:
        raise InvalidInput(f"dirichlet alpha must be above 0, not {alpha}")
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for label in np.unique(labels):
        generator = KeyedRandom(seed, "partition", "dirichlet", int(label)).generator()
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(count, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    shards = [np.concatenate(part) for part in parts]
    for index in range(count):
        if len(shards[index]) == 0:
            largest = max(range(count), key=lambda i: len(shards[i]))
            shards[index], shards[largest] = shards[largest][-1:], shards[largest][:-1]
    return [np.sort(shard) for shard in shards]


class LocalPartition(Partition):
    """Samples that one node alone holds, with an order that depends on no other node, and a new one in each epoch."""

    def __init__(self, samples: int, node_id: str, seed: int) -> None:
        self._samples, self._node_id, self._seed = samples, node_id, seed

    def size(self, shard: int) -> int:
        """Return the number of samples."""
        return self._samples

    def epoch(self, shard: int, number: int) -> Indices:
        """Return the samples in the order of an epoch."""
        generator = KeyedRandom(self._seed, "order", "local", self._node_id, number).generator()
        return generator.permutation(self._samples)


class ShardOrder:
    """Endless, deterministic order of a shard's samples.

    A cursor counts the samples used so far: a work unit has the same samples wherever it runs, and each sample of the
    shard is used once per epoch.
    """

    def __init__(self, partition: Partition, shard: int) -> None:
        self._partition, self._shard = partition, shard
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def take(self, cursor: int, count: int) -> Indices:
        """Return `count` samples from `cursor` ≥ 0 on, across epochs if necessary."""
        size = self._partition.size(self._shard)
        pieces = []
        while count > 0:
            epoch, start = divmod(cursor, size)
            piece = self._of(epoch)[start : start + count]
            pieces.append(piece)
            cursor += len(piece)
            count -= len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _of(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._partition.epoch(self._shard, epoch)
        return self._order
