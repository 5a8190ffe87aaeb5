"""Fragments: the parts of a model's parameters, of which each round synchronises one.

Source: Douillard et al., "Streaming DiLoCo with overlapping communication", 2025. A fragment holds whole layers. Layers
of equal size are dealt to the fragments in strided order, as in the paper.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import numpy as np

from hypergpu.common.errors import InvalidInput
from hypergpu.common.tensors import Flat, Manifest

MAX_FRAGMENTS: Final = 16
"""Most fragments of a model. The change of a fragment is that of one round at first, and later that of as many rounds
as there are fragments: with more, it would exceed the bound on norms (`coordinator/core/rounds/update_norms.py`)."""


def fragment_of(round_number: int, count: int) -> int:
    """Return the number of the fragment, of so many, that a round synchronises."""
    return round_number % count


class Fragments:
    """Places of the fragments in a flat buffer, of parameters followed by state.

    State, such as BatchNorm's running statistics, is in no fragment: it is small, and travels with each of them.

    Args:
        manifest: Tensors of the buffer.
        parameters: Number of floats that are parameters, at the beginning of the buffer.
        count: Number of fragments.

    Raises:
        InvalidInput: There are fewer tensors of parameters than fragments.
    """

    def __init__(self, manifest: Manifest, parameters: int, count: int) -> None:
        self.count = count
        self._parameters = parameters
        self._state = slice(parameters, manifest.size)
        self._slices = [_merged(part) for part in _dealt(_layers(manifest, parameters, count), count)]
        self._sizes = [sum(each.stop - each.start for each in part) for part in self._slices]

    @property
    def state_size(self) -> int:
        """Number of floats of state."""
        return self._state.stop - self._state.start

    def size(self, which: Sequence[int]) -> int:
        """Return the number of parameters of some fragments."""
        return sum(self._sizes[fragment] for fragment in which)

    @property
    def largest(self) -> int:
        """Number of the fragment with the most parameters."""
        return max(range(self.count), key=self._sizes.__getitem__)

    def take(self, flat: Flat, which: Sequence[int]) -> Flat:
        """Return a copy of the parameters of some fragments, one after the other, followed by the state.

        Args:
            flat: Shape (manifest.size,).
            which: Numbers of the fragments.

        Returns:
            Shape (size(which) + state_size,).
        """
        return np.concatenate([flat[place] for place in self._places(which)])

    def put(self, part: Flat, flat: Flat, which: Sequence[int]) -> None:
        """Write what `take` returned, or values like it, to its places in `flat`."""
        start = 0
        for place in self._places(which):
            end = start + place.stop - place.start
            flat[place] = part[start:end]
            start = end

    def _places(self, which: Sequence[int]) -> list[slice]:
        return [place for fragment in which for place in self._slices[fragment]] + [self._state]


def _layers(manifest: Manifest, parameters: int, count: int) -> list[slice]:
    """Return the places of layers, which are the tensors of one module; of tensors if there are too few layers."""
    tensors = [(spec.name, slice(start, start + spec.size)) for spec, start in manifest.offsets() if start < parameters]
    if len(tensors) < count:
        raise InvalidInput(
            f"training.fragments is {count}, and the model has {len(tensors)} trainable tensors: take {len(tensors)} "
            "fragments or fewer"
        )
    layers = [
        slice(group[0].start, group[-1].stop)
        for _, each in groupby(tensors, key=lambda tensor: tensor[0].rpartition(".")[0])
        for group in [[place for _, place in each]]
    ]
    return layers if len(layers) >= count else [place for _, place in tensors]


def _dealt(layers: Sequence[slice], count: int) -> list[list[slice]]:
    """Deal layers, the largest first, each to the fragment with the fewest parameters so far.

    So the largest fragment is at most a third larger than it must be (Graham, "Bounds on multiprocessing timing
    anomalies", 1969).
    """
    fragments: list[list[slice]] = [[] for _ in range(count)]
    sizes = [0] * count
    for layer in sorted(layers, key=lambda place: place.start - place.stop):
        smallest = min(range(count), key=lambda fragment: (sizes[fragment], len(fragments[fragment])))
        fragments[smallest].append(layer)
        sizes[smallest] += layer.stop - layer.start
    return fragments


def _merged(places: Sequence[slice]) -> list[slice]:
    """Return places in order, with neighbours joined."""
    merged: list[slice] = []
    for place in sorted(places, key=lambda each: each.start):
        if merged and merged[-1].stop == place.start:
            merged[-1] = slice(merged[-1].start, place.stop)
        else:
            merged.append(place)
    return merged
