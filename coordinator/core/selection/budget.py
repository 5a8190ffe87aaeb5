"""Budget of a round: which of the selected nodes a price per hour leaves room for."""

import numpy as np

from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints


def affordable(order: Ints, prices: Floats, budget: float, always: Bools) -> Bools:
    """Return the nodes that are kept within a budget: in order, each that the rest of the budget pays for.

    Args:
        order: Positions of the nodes, the most wanted first.
        prices: Price per hour of each node.
        budget: Price per hour of all that are kept.
        always: Nodes that are kept whatever they cost. Their price counts.

    Returns:
        A mask of the kept nodes. If it pays for none, the most wanted of the cheapest is kept: a round needs a node.
    """
    kept = always.copy()
    left = budget - float(prices[always].sum())
    for place in order.tolist():
        if not kept[place] and prices[place] <= max(left, 0.0):
            kept[place] = True
            left -= float(prices[place])
    if len(order) and not kept.any():
        kept[order[int(np.argmin(prices[order]))]] = True
    return kept
