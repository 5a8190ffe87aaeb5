"""What goes into the selection of a round, and what comes out of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hypergpu.coordinator.core.node_arrays import Floats, Ints
from hypergpu.coordinator.core.selection.strategies import SelectionReason


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """What is expected of the candidates in the coming round; the selector fills what it is not given."""

    compute_seconds: Floats | None = None
    """Of each candidate, with the batch planned for it."""
    batch_sizes: Ints | None = None
    noise_scale: float | None = None
    """φ in samples; the total of all candidates if not given."""
    gain: float = 0.1
    """Least relative gain in progress per second for which nodes are left out."""
    horizon: float = 0.0
    """Observations ahead for which the links are forecast."""
    window: int = 8
    """Latest rounds of a link that count."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome for one round."""

    round: int
    selected: list[str]
    reasons: Mapping[str, SelectionReason]
    """Of every node that was available."""
    figures: Mapping[str, Floats]
    """By name, in the order of `reasons`; NaN where a figure has no part in a node's reason."""
    places: Mapping[str, int]
    """Of every available node, its place in the figures."""

    def figures_of(self, node_id: str) -> dict[str, float]:
        """The figures behind the reason of one node."""
        at = self.places.get(node_id)
        if at is None:
            return {}
        return {name: float(values[at]) for name, values in self.figures.items() if not math.isnan(values[at])}
