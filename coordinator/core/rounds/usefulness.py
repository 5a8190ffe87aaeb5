"""Usefulness of updates: how much each node's part of the accepted mean helped, by the direction of its updates.

After each round, every update that counted is compared with the mean of the others by its sketch; norms are cut to the
median, so that a longer update earns nothing. The points of a node in a round are

    share of the weight × cosine with the mean of the others × agreement of the round

The agreement is the median cosine, or 0 if that is negative: near an optimum, the mean of unlike updates is about 0,
and directions say nothing. Points may be negative. Noise has a cosine of about 0, and so earns about nothing over
rounds.

An update that repeats what is known costs what the median one earns: an earlier one of its node, another node's that
came before it, or the step of the model that the coordinator sent. The test is one of directions, in usual distances of
the round.

Of some updates, drawn by a secret key when their round opens, the gain on held-out data is measured too: the loss
before them, less the loss after a step of them alone. It is evidence beside the points, and counts in none: an honest
update of rare data may have a loss.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.coordinator.core.model.sketch import WIDTH, Sketch
from hypergpu.coordinator.core.rounds.suspicion import copies_of

REPEATED: Final = 0.05
"""Distance of two directions, in usual ones, below which one is the other again. The least of honest updates was 0.12:
of a node with few samples, which learns from the same ones in each round."""
KEPT: Final = 8
"""Earlier updates of a node that are remembered, and steps of the model."""
FOLDED: Final = 64
"""Sums of a sketch that is remembered: enough to know a direction again, in a sixteenth of the memory."""
MOST_REMEMBERED: Final = 20_000
"""Nodes, times fragments, whose earlier updates are remembered: 80 MB."""
MOST_MEASURED: Final = 2
"""Updates of a round whose gain is measured, so that the work of a round has a bound."""
MOST_PAIRED: Final = 200
"""Updates of a round between which the usual distance is taken."""
LEAST_UPDATES: Final = 2
"""Updates of a round that can be compared."""

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Useful:
    """Figures of an update that counted."""

    node: str
    share: float
    """Share of the weight of its round."""
    cosine: float
    """Cosine with the mean of the others."""
    points: float
    repeated: bool = False
    """True if the update was known before."""


@dataclass(slots=True)
class _Update:
    node: str
    sketch: Sketch
    weight: float


@dataclass(slots=True)
class Usefulness:
    """Judges the updates of each round by what was known before it."""

    finds_copies: bool = True
    """False where each node brings its own samples: two may have the same."""
    measured_share: float = 0.0
    """Share of the updates whose gain is measured."""
    secret: int = 0
    """Key of the draws, which nodes must not know."""
    _drawn: frozenset[str] = frozenset()
    """Nodes of the open round whose update is measured."""
    _updates: list[_Update] = field(default_factory=list)
    _earlier: dict[tuple[str, int], deque[Vectors]] = field(default_factory=dict)
    """Directions of earlier updates, by node and fragment."""
    _steps: dict[int, deque[Vectors]] = field(default_factory=dict)
    """Directions of earlier steps, by fragment."""

    def begin_round(self, number: int, nodes: Collection[str]) -> None:
        """Draw the nodes of a round whose gain is measured."""
        draws = {node: KeyedRandom(self.secret, "gain", number, node).uniform(0) for node in nodes}
        lowest = sorted(draws, key=draws.__getitem__)[:MOST_MEASURED]
        self._drawn = frozenset(node for node in lowest if draws[node] < self.measured_share)

    def measures(self, node: str) -> bool:
        """Return whether the gain of a node's update in the open round is measured."""
        return node in self._drawn

    def observe(self, node: str, sketch: Sketch, scale: float, weight: float) -> None:
        """Note an update that counts, in the order of arrival; `scale` is the expected scale of its norm."""
        self._updates.append(_Update(node, sketch / np.float32(scale), weight))

    def stepped(self, fragment: int, sketch: Sketch) -> None:
        """Note the step of the model that follows on a round."""
        direction = _directions(_folded(sketch.astype(np.float64)[None, :]))[0]
        self._steps.setdefault(fragment, deque(maxlen=KEPT)).append(direction)

    def discard(self) -> None:
        """Forget the updates of the open round."""
        self._updates.clear()

    def close(
        self, fragment: int, spoiled_by: Collection[str] = (), copied: Collection[str] | None = None
    ) -> Sequence[Useful]:
        """Return the figures of the updates since the last call.

        Args:
            fragment: Fragment of the round.
            spoiled_by: Nodes whose updates may not be used, and have no figures.
            copied: Nodes whose updates are copies of earlier ones of the round; None = they are looked for.
        """
        updates = [each for each in self._updates if each.node not in spoiled_by]
        self.discard()
        if len(updates) < LEAST_UPDATES:
            return ()
        vectors = np.stack([each.sketch for each in updates]).astype(np.float64)
        nodes = [each.node for each in updates]
        directions = _directions(_folded(vectors))
        repeated = self._repeated(fragment, nodes, directions)
        norms = np.linalg.norm(vectors, axis=1)
        if copied is None:
            copied = copies_of(vectors, norms, nodes) if self.finds_copies else ()
        again = [known or node in copied for known, node in zip(repeated, nodes, strict=True)]
        self._remember(fragment, nodes, directions)
        cosines = _cosines_with_others(vectors, norms, again)
        fresh = [cosine for cosine, known in zip(cosines, again, strict=True) if not known]
        agreement = max(0.0, float(np.median(fresh or [0.0])))
        whole = sum(each.weight for each in updates)
        found = []
        for update, cosine, known in zip(updates, cosines, again, strict=True):
            share = update.weight / whole
            points = share * agreement * (-agreement if known else cosine)
            found.append(Useful(update.node, share, cosine, points, known))
        return found

    def _remember(self, fragment: int, nodes: Sequence[str], directions: Vectors) -> None:
        """Remember updates; beyond a bound, forget the nodes that sent none for longest."""
        for node, direction in zip(nodes, directions, strict=True):
            kept = self._earlier.pop((node, fragment), None) or deque(maxlen=KEPT)
            kept.append(direction)
            self._earlier[node, fragment] = kept
        for key in list(self._earlier)[:-MOST_REMEMBERED]:
            del self._earlier[key]

    def _repeated(self, fragment: int, nodes: Sequence[str], directions: Vectors) -> list[bool]:
        """Return which updates have the direction of an earlier one of their node, or of a step."""
        some = directions[:: -(-len(nodes) // MOST_PAIRED)]
        usual = float(np.median(_sines((some @ some.T)[np.triu_indices(len(some), 1)])))
        steps = self._steps.get(fragment, ())
        found = []
        for node, direction in zip(nodes, directions, strict=True):
            known = [*self._earlier.get((node, fragment), ()), *steps]
            found.append(bool(known) and float(_sines(np.stack(known) @ direction).min()) < REPEATED * usual)
        return found


def _cosines_with_others(vectors: Vectors, norms: Vectors, without: Sequence[bool]) -> list[float]:
    """Return the cosine of each vector with the sum of the others, cut to the median norm; some are in no sum."""
    cut = vectors * np.minimum(1.0, float(np.median(norms)) / np.maximum(norms, 1e-30))[:, None]
    counted = np.where(np.array(without)[:, None], 0.0, cut)
    others = counted.sum(axis=0) - counted
    lengths = norms * np.linalg.norm(others, axis=1)
    return [float(each) for each in np.einsum("ij,ij->i", vectors, others) / np.maximum(lengths, 1e-30)]


def _folded(vectors: Vectors) -> Vectors:
    """Return shorter sketches: sums with random signs of such sums are a sketch too."""
    return np.asarray(vectors.reshape(len(vectors), WIDTH // FOLDED, FOLDED).sum(axis=1))


def _directions(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1), 1e-30)[:, None])


def _sines(cosines: Vectors) -> Vectors:
    return np.asarray(np.sqrt(np.maximum(0.0, 1.0 - cosines**2)))
