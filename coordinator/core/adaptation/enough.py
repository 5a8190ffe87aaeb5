"""Share of the nodes after which waiting for more would lower the expected progress per second."""

import math

import numpy as np

from hypergpu.coordinator.core.node_arrays import Floats

LEAST_SHARE = 0.6
"""Smallest share that closes a round: the data of the others is not seen in it."""

_LEAST_GAIN = 1.1
"""Ratio of progress per second to that of waiting for all, for which the last nodes are not waited for: their work is
lost, and they miss the next round too if they are still busy."""


def enough_share(seconds: Floats, overhead_seconds: float, noise_nodes: float, max_staleness: int = 0) -> float:
    """Return the share of the nodes whose updates should close a round.

    The worth of k updates is k / (k + φ), with φ the number of nodes whose noise equals the signal (see `goodput`).
    The round with the most worth per second is chosen: waiting pays while the next update adds more per second than
    rounds do on average (the marginal value theorem: Charnov, "Optimal foraging", 1976).

    Where late updates count, those of the other nodes are not lost, and add to k what they weigh per round.

    Args:
        seconds: Times that the nodes took in the latest rounds, shape (nodes, rounds). The k-th smallest of each round
            is what k updates take; the mean over rounds is expected.
        overhead_seconds: Time between rounds.
        noise_nodes: φ in nodes.
        max_staleness: Rounds by which an update may be late and still count.
    """
    nodes = seconds.shape[0]
    if nodes == 0:
        return 1.0
    least = max(1, math.ceil(LEAST_SHARE * nodes - 1e-9))
    expected = np.sort(seconds, axis=0).mean(axis=1) + overhead_seconds
    count = np.arange(1, nodes + 1) + _late_updates(expected, max_staleness)
    rates = count / (count + noise_nodes) / np.maximum(expected, 1e-9)
    best = nodes - int(np.argmax(rates[least - 1 :][::-1]))  # the most nodes, of equal rates
    return best / nodes if rates[best - 1] >= _LEAST_GAIN * rates[-1] else 1.0


def _late_updates(expected: Floats, max_staleness: int) -> Floats:
    """Return the weight per round of the updates that come after the k-th, for each k.

    A node that takes the time of τ rounds delivers in every (τ+1)-th, since it begins with the next one, an update of
    the weight 1/√(1+τ).

    Args:
        expected: Times of rounds that close with the k-th update, ascending, shape (nodes,).
        max_staleness: Largest τ of an update that counts.
    """
    if not max_staleness:
        return np.zeros(len(expected))
    staleness = np.maximum(np.floor(expected[None, :] / np.maximum(expected[:, None], 1e-9)), 1.0)
    weights = np.where(staleness <= max_staleness, (1.0 + staleness) ** -1.5, 0.0)
    total: Floats = np.triu(weights, 1).sum(axis=1)
    return total
