"""Input and result of the node selection of a round."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hypergpu.coordinator.core.node_arrays import Floats, Ints
from hypergpu.coordinator.core.selection.strategies import SelectionReason


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """Expectations for the coming round. The selector fills in the fields that are None."""

    compute_seconds: Floats | None = None
    """Expected computing time of each candidate with its planned batch."""
    batch_sizes: Ints | None = None
    noise_scale: float | None = None
    """Gradient noise scale φ in samples; None for the total batch of all candidates."""
    gain: float = 0.1
    """Smallest relative gain in progress per second for which nodes are left out."""
    horizon: float = 0.0
    """Forecast horizon of the links in observations."""
    window: int = 8
    """Number of latest round communications used per link."""
    most: int | None = None
    """Largest number of nodes, beside `selector.max_selected_nodes`; None for no other limit."""
    probes: bool = False
    """True if nodes may get work that the round does not wait for."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Result of the node selection for one round."""

    round: int
    selected: list[str]
    """Nodes that the round waits for."""
    probes: Mapping[str, Mapping[str, float]]
    """Nodes that get work too, and that the round does not wait for: those on probation, and those whose links may have
    recovered, with the figures behind each. Those that the strategy leaves out keep its reason."""
    reasons: Mapping[str, SelectionReason]
    """Reason for each available node."""
    figures: Mapping[str, Floats]
    """Figures by name, in the order of `reasons`; NaN if a figure does not belong to the node's reason."""
    places: Mapping[str, int]
    """Position of each available node in the figures."""

    def figures_of(self, node_id: str) -> dict[str, float]:
        """Return the figures behind the reason of one node; empty for a node that was not available."""
        at = self.places.get(node_id)
        if at is None:
            return {}
        return {name: float(values[at]) for name, values in self.figures.items() if not math.isnan(values[at])}
