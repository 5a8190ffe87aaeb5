"""Sketches of updates: a thousand random sums of an update, from which norms and cosines of updates can be estimated.

A sum adds every `WIDTH`-th float, each with a random sign (count sketch; Charikar et al., ICALP 2002). The error of a
cosine is about 1 / √WIDTH. The signs must be unknown to the nodes: who knew them could hide from the sketch.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from hypergpu.common.keyed_random import KeyedRandom

WIDTH: Final = 1024
"""Sums of a sketch: 4 KiB for each update of a round."""
_PERIOD: Final = 64 * WIDTH
"""Floats after which the signs repeat, all of them with one more random sign."""

Sketch = npt.NDArray[np.float32]


class Sketcher:
    """Makes sketches that can be compared with each other.

    Args:
        key: Secret of the signs.
    """

    def __init__(self, key: int) -> None:
        random = KeyedRandom(key, "sketch")
        self._signs = random.generator().choice(np.array([-1.0, 1.0], np.float32), _PERIOD)
        self._periods = KeyedRandom(key, "periods")

    def add(self, sketch: Sketch, start: int, part: npt.NDArray[np.float32]) -> None:
        """Add a part of an update to its sketch, from its index `start` on."""
        done = 0
        while done < len(part):
            at = start + done
            take = min(len(part) - done, _PERIOD - at % _PERIOD)
            sign = 1.0 if self._periods.bits(at // _PERIOD) & 1 else -1.0
            signed = part[done : done + take] * self._signs[at % _PERIOD : at % _PERIOD + take]
            _fold(sketch, at % WIDTH, signed, np.float32(sign))
            done += take


def _fold(sketch: Sketch, offset: int, values: npt.NDArray[np.float32], sign: np.float32) -> None:
    """Add values to the sums in turn, the first to that of index `offset`."""
    head = min(len(values), WIDTH - offset) if offset else 0
    sketch[offset : offset + head] += sign * values[:head]
    whole = (len(values) - head) // WIDTH * WIDTH
    if whole:
        sketch += sign * values[head : head + whole].reshape(-1, WIDTH).sum(axis=0)
    rest = values[head + whole :]
    sketch[: len(rest)] += sign * rest
