"""Share of the nodes after which waiting for more would lower the expected progress per second."""

import math

import numpy as np

from hypergpu.coordinator.core.node_arrays import Floats

LEAST_SHARE = 0.6
"""Smallest share that closes a round: the data of the others is not seen in it."""

_LEAST_GAIN = 1.1
"""Ratio of progress per second to that of waiting for all, for which the last nodes are not waited for: their work is
lost, and they miss the next round too if they are still busy."""


def enough_share(seconds: Floats, overhead_seconds: float, noise_nodes: float) -> float:
    """Return the share of the nodes whose updates should close a round.

    The worth of k updates is k / (k + φ), with φ the number of nodes whose noise equals the signal (see `goodput`).
    The round with the most worth per second is chosen: waiting pays while the next update adds more per second than
    rounds do on average (the marginal value theorem: Charnov, "Optimal foraging", 1976).

    Args:
        seconds: Times that the nodes took in the latest rounds, shape (nodes, rounds). The k-th smallest of each round
            is what k updates take; the mean over rounds is expected.
        overhead_seconds: Time between rounds.
        noise_nodes: φ in nodes.
    """
    nodes = seconds.shape[0]
    if nodes == 0:
        return 1.0
    least = max(1, math.ceil(LEAST_SHARE * nodes - 1e-9))
    expected = np.sort(seconds, axis=0).mean(axis=1) + overhead_seconds
    count = np.arange(1, nodes + 1)
    rates = count / (count + noise_nodes) / np.maximum(expected, 1e-9)
    best = nodes - int(np.argmax(rates[least - 1 :][::-1]))  # the most nodes, of equal rates
    return best / nodes if rates[best - 1] >= _LEAST_GAIN * rates[-1] else 1.0
