"""Recording of a round's contributions in the monitor, batch controller and selector."""

import math
from collections.abc import Sequence

import numpy as np

from hypergpu.common.errors import InvalidInput
from hypergpu.coordinator.core.batching import AdaptiveBatchController
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.node_arrays import Floats
from hypergpu.coordinator.core.rounds.adaptation import Activity, LateWork
from hypergpu.coordinator.core.rounds.events import Contribution, LateUpdate
from hypergpu.coordinator.core.selection import DynamicNodeSelector

LATEST_COMMUNICATIONS = 4
"""Number of latest round communications that show what is expected of a link."""


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
    selector.record_failed_probes([each.node for each in results if _is_failed_probe(each)])
    # Of a trial that failed, the rate failed and not the node; how late a probe is shows later (see `record_late`).
    results = [each for each in results if each.success or (each.awaited and not each.trial_failed)]
    ids = [each.node for each in results]
    success = np.array([each.success for each in results], bool)
    late = np.array([each.late for each in results], bool)
    measured = np.array([each.measured for each in results], bool)
    loss = np.array([each.loss_before or each.loss or np.nan for each in results], np.float64)
    waiting, compute, samples, sizes, steps = _figures(results)
    # What a node without an update spent its time on is not known yet; see `record_late`.
    measured &= success | (late & (compute > 0))
    monitor.record_rounds(monitor.rows(ids), waiting, success, measured)
    selector.record_contributions(
        selector.rows(ids),
        compute=np.where(measured, compute, 0.0),
        waiting=np.where(measured, waiting, 0.0),
        success=success,
        late=late,
        loss=loss,
        samples=np.where(success, samples, 0.0),
    )
    computed = np.where(samples > 0, samples, sizes * steps)  # an update of a trial counts no samples
    did = success & (computed > 0)
    spent, worked, taken = (compute + waiting)[did], compute[did], computed[did]
    done = np.maximum(np.rint(taken / np.where(sizes[did] > 0, sizes[did], taken)), 1).astype(np.int64)
    batches.record_performances(batches.rows(ids)[did], taken, spent, done, worked)
    return float(waiting[measured].max(initial=0.0))


def _figures(results: Sequence[Contribution]) -> Floats:
    """Return waiting and computing seconds, samples, batch sizes and local steps: a row each, a column for each node.

    Raises:
        InvalidInput: A figure is negative or not finite.
    """
    figures = np.array(
        [(c.waiting_seconds, c.compute_seconds, c.samples, c.batch_size, c.local_steps) for c in results], np.float64
    ).reshape(-1, 5)
    sound = (np.isfinite(figures) & (figures >= 0)).all(axis=1)
    if not sound.all():
        worst = results[int(np.argmin(sound))].node
        raise InvalidInput(f"the contribution of node {worst} has a negative or non-finite figure")
    return figures.T


def _is_failed_probe(result: Contribution) -> bool:
    """Return whether a node failed, and was not only late, at work that its round did not wait for."""
    return not (result.success or result.awaited or result.late or result.trial_failed)


def record_late(
    work: LateWork, monitor: NetworkQualityMonitor, batches: AdaptiveBatchController, selector: DynamicNodeSelector
) -> None:
    """Record what the time of late work went into: exactly if the node has computed, else as the least that it may be.

    A lower bound counts only if it is above what is expected anyway. Of an update that was not received as a whole, the
    rest would have taken its time by the rate of the link; where that is not measured, what was expected of the node
    counts as measured if it is more, so that it is no longer taken for an unknown one.

    Raises:
        UnknownName: The node is not registered.
    """
    usual_compute = float(batches.compute_seconds([work.node])[0])
    usual_communication = float(
        monitor.round_communication_samples(monitor.rows([work.node]), LATEST_COMMUNICATIONS).mean()
    )
    compute = communication = 0.0
    missing = (1.0 - work.received_share) * monitor.upload_seconds(work.node) if work.received_share < 1.0 else 0.0
    is_exact = work.doing is Activity.DONE and not math.isnan(missing)
    match work.doing:
        case Activity.DONE:
            compute, communication = work.compute_seconds, work.elapsed_seconds - work.compute_seconds
            communication = communication + missing if is_exact else max(usual_communication, communication)
        case Activity.PULLING:
            communication = _above(usual_communication, work.elapsed_seconds)
        case Activity.PUSHING:
            communication = _above(usual_communication, work.elapsed_seconds - usual_compute)
        case Activity.TRAINING:
            compute = work.compute_seconds or _above(usual_compute, work.elapsed_seconds - usual_communication)
    if communication > 0:
        monitor.record_round_communication(work.node, communication)
    if compute > 0:
        batches.record_step(work.node, work.batch_size, compute / work.local_steps)
    selector.record_times(work.node, compute, communication)
    if work.merged:
        selector.record_merged(work.node, work.batch_size * work.local_steps)
    if is_exact:
        selector.record_late_probe(work.node, communication)
    needed = compute + communication if is_exact else work.elapsed_seconds
    if not work.awaited and (work.doing is Activity.DONE or needed > work.allowed_seconds):
        selector.record_late_probation(work.node, in_time=needed <= work.allowed_seconds)


def _above(expected: float, least: float) -> float:
    """Return a lower bound that is above what is expected, or else 0."""
    return least if least > expected else 0.0


def record_noise(
    norms: tuple[float, float],
    results: Sequence[Contribution],
    late: Sequence[LateUpdate],
    batches: AdaptiveBatchController,
) -> None:
    """Record (mean of |update|² over the nodes, |mean update|²) for the gradient noise scale.

    A late update counts as many samples as it weighs.
    """
    used = [float(each.samples) for each in results if each.success] + [each.weight for each in late]
    if len(used) >= 2:
        batches.updates.observe(norms, len(used), math.fsum(used) / len(used), batches.local_steps)


def record_saturation(results: Sequence[Contribution], batches: AdaptiveBatchController) -> None:
    """Record how far local work brought the losses of the first batches, for the worth of local steps."""
    ratios = [
        each.loss_after / each.loss_before
        for each in results
        if each.success and each.samples and each.loss_after is not None and each.loss_before > 0
    ]
    if ratios:
        batches.updates.saturation.observe(ratios, batches.local_steps)
