"""Random numbers addressed by key and index instead of taken from a shared stream.

A number depends on (seed, key, index) alone: what one link or node does changes no other, and a new
feature shifts no existing number. The generator is SplitMix64 (Steele, Lea & Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014) run as a counter: the key picks the stream.
"""

import math
from array import array
from hashlib import blake2b
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_TO_UNIT = 1.0 / (1 << 53)
_BLOCK_BITS = 7
_IN_BLOCK = (1 << _BLOCK_BITS) - 1
_INVERSE_NORMAL = NormalDist().inv_cdf


class KeyedRandom:
    """Stream of random numbers of one `(seed, *key)`.

    >>> KeyedRandom(7, "node_1", "up", "latency").uniform(0) == KeyedRandom(7, "node_1", "up", "latency").uniform(0)
    True
    """

    __slots__ = ("_base",)

    def __init__(self, seed: int, *key: str | int) -> None:
        text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in key)])
        self._base = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")

    def bits(self, index: int) -> int:
        """Return 64 random bits for `index` ≥ 0."""
        z = (self._base + (index + 1) * _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def uniform(self, index: int) -> float:
        """Return a number in [0, 1)."""
        return (self.bits(index) >> 11) * _TO_UNIT

    def normal(self, index: int) -> float:
        """Return a number from the standard normal distribution."""
        return _INVERSE_NORMAL(((self.bits(index) >> 11) + 0.5) * _TO_UNIT)

    def exponential(self, index: int) -> float:
        """Return a number from the exponential distribution of mean 1."""
        return -math.log1p(-self.uniform(index))

    def uniforms(self, start: int, count: int) -> "npt.NDArray[np.float64]":
        """Return `uniform(start) … uniform(start + count - 1)` at once."""
        import numpy as np  # noqa: PLC0415 - lazily: the proxy never needs it and saves its 13 MB

        with np.errstate(over="ignore"):
            index = np.arange(start + 1, start + count + 1, dtype=np.uint64)
            z = np.uint64(self._base) + index * np.uint64(_GOLDEN)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        return (z >> np.uint64(11)).astype(np.float64) * _TO_UNIT

    def normals(self, start: int, count: int) -> list[float]:
        """Return `normal(start) … normal(start + count - 1)` at once."""
        half = 0.5 * _TO_UNIT
        return [_INVERSE_NORMAL(uniform + half) for uniform in self.uniforms(start, count).tolist()]

    def generator(self, index: int = 0) -> "np.random.Generator":
        """Return a numpy generator seeded by this stream, for permutations and partitions."""
        import numpy as np  # noqa: PLC0415 - lazily, as above

        return np.random.Generator(np.random.PCG64(self.bits(index)))


class BufferedKeyedRandom(KeyedRandom):
    """The same numbers in half the time when they are read in order of their index: computed in blocks."""

    __slots__ = ("_ahead", "_block")

    def __init__(self, seed: int, *key: str | int) -> None:
        super().__init__(seed, *key)
        self._block = -1
        self._ahead = array("d")  # a list of floats would take four times the memory, and nodes are many

    def uniform(self, index: int) -> float:
        """Return a number in [0, 1)."""
        if index >> _BLOCK_BITS != self._block:
            self._block = index >> _BLOCK_BITS
            self._ahead = array("d", self.uniforms(self._block << _BLOCK_BITS, 1 << _BLOCK_BITS).tobytes())
        return self._ahead[index & _IN_BLOCK]
