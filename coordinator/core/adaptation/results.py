"""Recording of a round's contributions in the monitor, batch controller and selector."""

import math
from collections.abc import Sequence

import numpy as np

from hypergpu.common.errors import InvalidInput
from hypergpu.coordinator.core.batching import AdaptiveBatchController
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.rounds.events import Contribution
from hypergpu.coordinator.core.selection import DynamicNodeSelector


def record_results(
    results: Sequence[Contribution],
    monitor: NetworkQualityMonitor,
    batches: AdaptiveBatchController,
    selector: DynamicNodeSelector,
) -> float:
    """Record communication, contribution and performance of each node; the nodes must be distinct.

    Returns:
        The longest measured communication in seconds.

    Raises:
        UnknownName: A node is not registered.
        InvalidInput: A figure is negative or not finite.
    """
    if not results:
        return 0.0
    ids = [each.node for each in results]
    success = np.array([each.success for each in results], bool)
    late = np.array([each.late for each in results], bool)
    measured = np.array([each.measured for each in results], bool)
    loss = np.array([each.loss_before or each.loss or np.nan for each in results], np.float64)
    figures = np.array(
        [(each.waiting_seconds, each.compute_seconds, each.samples, each.batch_size) for each in results], np.float64
    )
    sound = (np.isfinite(figures) & (figures >= 0)).all(axis=1)
    if not sound.all():
        worst = ids[int(np.argmin(sound))]
        raise InvalidInput(f"the contribution of node {worst} has a negative or non-finite figure")
    waiting, compute, samples, sizes = figures.T
    # A failed node has computed too: its usual computing time does not count as communication.
    exchange = np.where(success, waiting, np.maximum(waiting - batches.compute_seconds(ids), 0.0))
    measured &= success | (exchange > 0)
    monitor.record_rounds(monitor.rows(ids), exchange, success, measured)
    selector.record_contributions(
        selector.rows(ids), compute=compute, waiting=waiting, success=success, late=late, loss=loss
    )
    did = success & (samples > 0)
    spent, worked, taken = (compute + waiting)[did], compute[did], samples[did]
    steps = np.maximum(np.rint(taken / np.where(sizes[did] > 0, sizes[did], taken)), 1).astype(np.int64)
    batches.record_performances(batches.rows(ids)[did], taken, spent, steps, worked)
    return float(exchange[measured].max(initial=0.0))


def record_noise(norms: tuple[float, float], results: Sequence[Contribution], batches: AdaptiveBatchController) -> None:
    """Record (mean of |update|² over the nodes, |mean update|²) for the gradient noise scale."""
    used = [each.samples for each in results if each.success]
    if len(used) >= 2:
        batches.noise.observe(float(norms[0]), float(norms[1]), len(used), math.fsum(used) / len(used))
