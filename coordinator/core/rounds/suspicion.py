"""Suspicion: which nodes send what no honest node sends, folded over rounds to a decision with figures.

After each round, every update is compared with the others of the round by its sketch. Three figures count:

- its cosine with the mean of the others, whose norms are cut to the median, and without those that point against it;
- its norm, in medians of the round;
- its distance to another update: honest ones are never nearly the same, since no two nodes learn from the same samples.

Each figure that is out of bounds adds to a score, and each round without one takes from it (a CUSUM; Page, Biometrika
1954), so that neither one odd round nor skewed data make a suspect. The limits were set by honest runs of skewed data;
docs/robustness.md has the figures. A suspect gets no work. Later, it is on probation: its updates are judged only.
"""

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hypergpu.common.config.training import TrainingConfig
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.model.sketch import Sketch

LEAST_UPDATES: Final = 3
"""Updates of a round that can be compared: of two that differ, nobody knows which is wrong."""
BLATANT: Final = 20.0
"""Norm in medians of the round with which an update cannot be used, nor what contains it."""
MIDDLES: Final = 16
"""Rounds whose median norm counts, if it is above that of the round: most updates of a learned task are about 0."""
SAME: Final = 0.1
"""Distance of two updates, in usual distances, below which one was made from the other."""
AGREEMENT: Final = 0.15
"""Median cosine of a round below which none says anything: near an optimum the mean of unlike updates is about 0, and
that of the others points against each."""
COPY: Final = 0.4
"""Addition to the score of a node for a copy."""
OPPOSED: Final = -0.5
"""Cosine below which an update has no part in the mean that others are compared with."""
MOST_OPPOSED: Final = 32
"""Opposed updates that are left out one by one, so that the work of a round has a bound."""
MOST_PER_ROUND: Final = 0.75
"""Largest addition of one round to a score."""
_CANCELLED: Final = 1e-9
"""Bound of what rounding makes of a square of a distance, relative to the squares of the norms."""
NEIGHBORS: Final = 8
"""Updates next in norm that each is compared with for copies."""
SUSPENDED_ROUNDS: Final = 20
"""Rounds without work for a suspect, doubled each time."""
PROBATION_SCORE: Final = 0.3
"""Score of a node on probation that is a suspect again."""
PROBATION_ROUNDS: Final = 3
"""Rounds in which the updates of a node that returns do not count yet."""


class Limits(NamedTuple):
    """Figures that say nothing yet."""

    against: float
    """Cosine below zero."""
    long: float
    """Norm in medians of the round."""
    score: float
    """Score of a node that is no suspect yet."""


ALIKE: Final = Limits(against=0.25, long=6.0, score=1.5)
"""Limits where all shards are drawn alike."""
SKEWED: Final = Limits(against=0.4, long=10.0, score=1.8)
"""Limits where they are not: updates point against each other late in the training, and rare data make long ones."""


class SuspicionReason(StrEnum):
    """Reason for a suspicion, or for its end."""

    AGAINST_THE_OTHERS = "against_the_others"
    TOO_LONG = "too_long"
    COPIES = "copies"
    NOT_FINITE = "not_finite"
    REFUSED_NORMS = "refused_norms"
    NOT_REPRODUCED = "not_reproduced"
    """Two other nodes have computed its work again, and agree on another result."""
    ON_PROBATION = "on_probation"
    CLEARED = "cleared"


_R = SuspicionReason


@dataclass(frozen=True, slots=True)
class Accusation:
    """Change of what is thought of a node, with the figures behind it."""

    node: str
    reason: SuspicionReason
    figures: Figures


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of a round."""

    accusations: Sequence[Accusation] = ()
    spoiled_by: Sequence[str] = ()
    """Nodes whose updates may not be used, although they were accepted."""
    copied: Collection[str] | None = field(default=None, compare=False)
    """Nodes whose updates are copies of earlier ones of the round; None = nobody looked."""


@dataclass(slots=True)
class _Record:
    """Knowledge of one node."""

    score: float = 0.0
    copied: int = 0
    """Times that it sent what another had sent before it."""
    strikes: int = 0
    suspended_until: int = 0
    """First round in which a suspect gets work again; 0 = it is none."""
    probation: int = 0
    """Rounds of its probation that are left."""


@dataclass(slots=True)
class _Update:
    """Update of the open round."""

    node: str
    sketch: npt.NDArray[np.float64]
    """In units of its expected norm."""


@dataclass(slots=True)
class Suspicions:
    """Judges the updates of each round, and knows the suspects."""

    enabled: bool = True
    limits: Limits = ALIKE
    """Figures that say nothing yet."""
    finds_copies: bool = True
    """False where each node brings its own samples: two may have the same."""
    _round: int = 0
    """Round that is judged."""
    _found: list[Accusation] = field(default_factory=list)
    _copied: frozenset[str] = frozenset()
    """Nodes whose updates of the round that is judged are copies."""
    _middles: deque[float] = field(default_factory=lambda: deque(maxlen=MIDDLES))
    """Median norms of the latest rounds."""
    _may_suspect: int = 0
    """Nodes that may become suspects in the round that is judged."""
    _records: dict[str, _Record] = field(default_factory=dict)
    _updates: list[_Update] = field(default_factory=list)
    _unusable: dict[str, SuspicionReason] = field(default_factory=dict)
    """Nodes whose update of the open round was refused."""

    def is_suspended(self, node: str, round_number: int) -> bool:
        """Return whether a node gets no work in a round."""
        record = self._records.get(node)
        return record is not None and round_number < record.suspended_until

    def counts(self, node: str) -> bool:
        """Return whether the updates of a node count."""
        record = self._records.get(node)
        return record is None or not (record.suspended_until or record.probation)

    def forgive(self, node: str) -> None:
        """Forget what is known of a node."""
        self._records.pop(node, None)

    def observe(self, node: str, sketch: Sketch, scale: float) -> None:
        """Note an accepted update, in the order of arrival; `scale` is the expected scale of its norm."""
        self._updates.append(_Update(node, sketch.astype(np.float64) / scale))

    def refused(self, node: str, reason: SuspicionReason) -> None:
        """Note that an update of a node could not be used."""
        self._unusable[node] = reason

    def discard(self) -> None:
        """Forget the updates of the open round."""
        self._updates.clear()
        self._unusable.clear()

    def judge(self, round_number: int, connected: Collection[str]) -> Judgement:
        """Judge the updates since the last call, in a round that closes.

        No more than half of the `connected` nodes become suspects: of more, nobody knows who is right.
        """
        updates, unusable = list(self._updates), dict(self._unusable)
        self.discard()
        if not self.enabled:
            return Judgement()
        self._begin(round_number, connected)
        if len(unusable) <= (len(updates) + len(unusable)) / 3:  # else it is not the nodes
            for node, reason in unusable.items():
                self._add(node, MOST_PER_ROUND, reason, {})
        self._copied = frozenset()
        spoiled = self._compare(updates) if len(updates) >= LEAST_UPDATES else []
        for update in updates:
            self._pass(update.node)
        return Judgement(tuple(self._found), tuple(spoiled), self._copied)

    def convict(
        self, node: str, figures: Figures, round_number: int, connected: Collection[str]
    ) -> Sequence[Accusation]:
        """Suspect a node whose work others could not reproduce; return what changes, as in `judge`."""
        self._begin(round_number, connected)
        self._suspect(node, _R.NOT_REPRODUCED, figures)
        return tuple(self._found)

    def _begin(self, round_number: int, connected: Collection[str]) -> None:
        self._round, self._found = round_number, []
        self._may_suspect = len(connected) // 2 - sum(self.is_suspended(node, round_number + 1) for node in connected)

    def _compare(self, updates: Sequence[_Update]) -> list[str]:
        """Judge updates by the others; return the nodes of those that cannot be used."""
        vectors, nodes = np.stack([update.sketch for update in updates]), [update.node for update in updates]
        norms = np.linalg.norm(vectors, axis=1)
        middle = float(np.median(norms)) or 1.0
        cosines = _cosines(vectors, norms, middle, [not self.counts(node) for node in nodes])
        agree = float(np.median(cosines)) >= AGREEMENT
        copies = copies_of(vectors, norms, nodes) if self.finds_copies else {}
        self._copied = frozenset(copies)
        spoiled = []
        self._middles.append(middle)
        lengths = norms / max(middle, float(np.median(self._middles)))
        for node, length, cosine in zip(nodes, lengths.tolist(), cosines, strict=True):
            figures: Figures = {"cosine": round(cosine, 3), "norm_in_medians": round(length, 3)}
            if length > BLATANT and self.counts(node):
                spoiled.append(node)
                self._suspect(node, _R.TOO_LONG, figures)
                continue
            against, long = -cosine - self.limits.against, length / self.limits.long - 1.0
            against = against if agree else min(against, 0.0)
            if node in copies:
                self._record(node).copied += 1
                distance = round(copies[node].distance, 4)
                self._add(node, max(COPY, against), _R.COPIES, {**figures, "distance_in_usual_ones": distance})
            else:
                is_long = long > max(against, 0.0)
                reason = _R.TOO_LONG if is_long else _R.AGAINST_THE_OTHERS
                self._add(node, long if is_long else against, reason, figures)
        self._add_accomplices(copies)
        return spoiled

    def _add_accomplices(self, copies: "Mapping[str, _Copy]") -> None:
        """Suspect those that send the same as a new suspect, and that were not always the first to send it."""
        named = {each.node for each in self._found if each.reason is _R.COPIES}
        for group in {copy.group for node, copy in copies.items() if node in named}:
            for node in sorted(group - named):
                if self._record(node).copied:
                    self._suspect(node, _R.COPIES, {"same_as": min(group & named)})

    def _add(self, node: str, step: float, reason: SuspicionReason, figures: Figures) -> None:
        """Add to the score of a node, and suspect it if that is above the limit."""
        record = self._record(node)
        record.score = max(0.0, record.score + min(step, MOST_PER_ROUND))
        if record.score >= (PROBATION_SCORE if record.probation else self.limits.score):
            self._suspect(node, reason, {**figures, "score": round(record.score, 3)})

    def _suspect(self, node: str, reason: SuspicionReason, figures: Figures) -> None:
        """Give a node no more work for some rounds."""
        record = self._record(node)
        if record.suspended_until or self._may_suspect < 1:
            return
        self._may_suspect -= 1
        rounds = SUSPENDED_ROUNDS * 2 ** min(record.strikes, 5)
        record.strikes += 1
        record.score, record.copied, record.probation = 0.0, 0, 0
        record.suspended_until = self._round + 1 + rounds
        self._found.append(Accusation(node, reason, {**figures, "state": "quarantined", "suspended_rounds": rounds}))

    def _pass(self, node: str) -> None:
        """Count a round of a node's probation."""
        record = self._records.get(node)
        if record is None or not record.probation:
            return
        record.probation -= 1
        if not record.probation:
            self._found.append(Accusation(node, _R.CLEARED, {"state": "active", "rounds": PROBATION_ROUNDS}))

    def release(self, round_number: int) -> Sequence[Accusation]:
        """Put the suspects whose time is over on probation."""
        found = []
        for node, record in self._records.items():
            if 0 < record.suspended_until <= round_number:
                record.suspended_until, record.probation = 0, PROBATION_ROUNDS
                found.append(Accusation(node, _R.ON_PROBATION, {"state": "probation", "strikes": record.strikes}))
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return what is known of the nodes, as JSON, for a later process; the open round is no part of it."""
        known = {node: asdict(record) for node, record in self._records.items() if record != _Record()}
        return {"nodes": known, "middles": [each for each in self._middles if 0 < each < math.inf]}

    def restore(self, nodes: Mapping[str, Mapping[str, Any]], middles: Sequence[float]) -> None:
        """Know of the nodes what an earlier process knew, unless suspicion was turned off since."""
        if not self.enabled:
            return
        self._records = {node: _Record(**record) for node, record in nodes.items()}
        self._middles.extend(middles)

    def _record(self, node: str) -> _Record:
        return self._records.setdefault(node, _Record())


def suspicions_of(config: TrainingConfig, *, enabled: bool) -> Suspicions:
    """Return the judge of a run's updates."""
    return Suspicions(enabled, ALIKE if config.shards_are_alike else SKEWED, finds_copies=not config.data_is_local)


Vectors = npt.NDArray[np.float64]


def _cosines(vectors: Vectors, norms: Vectors, middle: float, outside: Sequence[bool]) -> list[float]:
    """Return the cosine of each vector with the mean of the others, cut to the middle norm.

    Vectors that are `outside`, or point against the rest, are no part of the mean: one after the other, the most
    opposed first, as long as a majority is left.
    """
    cut = vectors * np.minimum(1.0, middle / np.maximum(norms, 1e-30))[:, None]
    taken = ~np.array(outside)
    for removed in range(MOST_OPPOSED + 1):
        total = cut[taken].sum(axis=0)
        others = total - np.where(taken[:, None], cut, 0.0)
        lengths = np.linalg.norm(others, axis=1)
        cosines = np.einsum("ij,ij->i", vectors, others) / np.maximum(norms * lengths, 1e-30)
        worst = int(np.argmin(np.where(taken, cosines, np.inf)))
        if cosines[worst] > OPPOSED or taken.sum() - 1 <= len(vectors) / 2 or removed == MOST_OPPOSED:
            break
        taken[worst] = False
    return [float(cosine) for cosine in cosines]


class _Copy(NamedTuple):
    """An update that is nearly the same as one that arrived before it."""

    group: frozenset[str]
    """Nodes that sent it, the first one among them."""
    distance: float
    """Distance to the nearest of the others, in usual distances."""


def copies_of(vectors: Vectors, norms: Vectors, nodes: Sequence[str]) -> dict[str, _Copy]:
    """Return the copies by node. Only updates that are next in norm are compared, so that many nodes cost little."""
    spread = float(np.median(np.linalg.norm(vectors - np.median(vectors, axis=0), axis=1)))
    usual = spread * math.sqrt(2.0)
    if not 0 < usual < math.inf:
        return {}
    first_of = list(range(len(nodes)))
    """Earlier update of the same group, for each update; for the first of a group, itself."""
    nearest = [math.inf] * len(nodes)
    for one, other in _close_pairs(vectors, np.argsort(norms, kind="stable"), SAME * usual):
        distance = float(np.linalg.norm(vectors[one] - vectors[other])) / usual
        if distance < SAME:
            low, high = sorted((_first(first_of, one), _first(first_of, other)))
            first_of[high] = low
            nearest[one], nearest[other] = min(nearest[one], distance), min(nearest[other], distance)
    groups: dict[int, set[str]] = {}
    for at, node in enumerate(nodes):
        groups.setdefault(_first(first_of, at), set()).add(node)
    members = {first: frozenset(group) for first, group in groups.items()}
    return {
        nodes[at]: _Copy(members[first], nearest[at])
        for at in range(len(nodes))
        if (first := _first(first_of, at)) != at
    }


def _close_pairs(vectors: Vectors, order: npt.NDArray[np.intp], distance: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs that are next in an order and may be within a distance, by |a-b|² = |a|² + |b|² - 2ab."""
    ranked = vectors[order]
    squares = np.einsum("ij,ij->i", ranked, ranked)
    for lag in range(1, min(NEIGHBORS + 1, len(order))):
        sums = squares[lag:] + squares[:-lag]
        apart = sums - 2.0 * np.einsum("ij,ij->i", ranked[lag:], ranked[:-lag])
        for at in np.flatnonzero(apart < distance**2 + _CANCELLED * sums).tolist():
            yield int(order[at]), int(order[at + lag])


def _first(first_of: list[int], at: int) -> int:
    """Return the first update of the group of one, and shorten the way to it (union-find)."""
    while first_of[at] != at:
        first_of[at] = first_of[first_of[at]]
        at = first_of[at]
    return at
