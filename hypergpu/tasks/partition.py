"""Distribution of samples over shards, and the order of samples in a shard. Pure numpy, keyed by seed.

Coordinator and nodes compute the same shards from (scheme, seed, count), so only an index and a cursor travel.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.keyed_random import KeyedRandom

Indices = npt.NDArray[np.int64]
Partition = Sequence[Indices]

SCHEMES = ("dirichlet", "iid")


def partition(scheme: str, labels: Indices | int, count: int, seed: int, *, alpha: float = 0.5) -> Partition:
    """Distribute samples over `count` shards: each sample to exactly one, and at least one to each.

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
            return iid(samples, count, seed)
        case "dirichlet":
            if isinstance(labels, int):
                raise InvalidInput("a Dirichlet partition needs the class of each sample")
            return dirichlet(labels, count, seed, alpha)
    raise UnknownName("partition", scheme, SCHEMES)


def iid(samples: int, count: int, seed: int) -> Partition:
    """Distribute samples at random over shards whose sizes differ by at most one."""
    order = KeyedRandom(seed, "partition", "iid").generator().permutation(samples)
    return [np.sort(part) for part in np.array_split(order, count)]


def dirichlet(labels: Indices, count: int, seed: int, alpha: float) -> Partition:
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


class ShardOrder:
    """Endless, deterministic order of a shard's samples, with a new permutation in each epoch.

    A cursor counts the samples used so far: a work unit has the same samples wherever it runs, and each sample is
    used once per epoch.
    """

    def __init__(self, indices: Indices, seed: int, shard: int) -> None:
        if len(indices) == 0:
            raise InvalidInput(f"shard {shard} has no samples")
        self._indices, self._seed, self._shard = indices, seed, shard
        self._epoch, self._order = -1, indices

    def take(self, cursor: int, count: int) -> Indices:
        """Return `count` samples from `cursor` ≥ 0 on, across epochs if necessary."""
        size = len(self._indices)
        pieces = []
        while count > 0:
            epoch, start = divmod(cursor, size)
            piece = self._of(epoch)[start : start + count]
            pieces.append(piece)
            cursor += len(piece)
            count -= len(piece)
        return np.concatenate(pieces) if pieces else self._indices[:0]

    def _of(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            generator = KeyedRandom(self._seed, "order", self._shard, epoch).generator()
            self._epoch, self._order = epoch, generator.permutation(self._indices)
        return self._order
