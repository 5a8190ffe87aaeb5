"""Batch sizes by latency and throughput, as functions over arrays. GOODPUT is in the module `goodput`."""

from enum import StrEnum
from typing import Final

import numpy as np

from hypergpu.coordinator.core.node_arrays import Floats, Ints

REFERENCE_LATENCY_MS = 25.0
"""Round trip at which LATENCY_BASED returns the baseline."""


class BatchReason(StrEnum):
    """Reason why a batch size changed."""

    BASELINE = "baseline"
    """Return to the configured size: the strategy is FIXED, or adaptation is off."""
    LATENCY_HIGH = "latency_high"
    LATENCY_LOW = "latency_low"
    THROUGHPUT_IMPROVING = "throughput_improving"
    THROUGHPUT_DEGRADING = "throughput_degrading"
    PROBES_THROUGHPUT = "probes_throughput"
    """Only one size has been measured: a first step shows in which direction throughput improves."""
    HYBRID = "latency_and_throughput"
    FILLS_IDLE_TIME = "fills_idle_time"
    """The node would wait at the barrier, so it computes more samples."""
    SHORTENS_ROUND = "shortens_round"
    """The other nodes wait for this node, so it computes fewer samples."""
    MORE_PROGRESS_PER_SECOND = "more_progress_per_second"
    """The plan of the whole round changed to the best goodput of the cluster."""
    ROLLED_BACK = "rolled_back"
    RESUMED = "resumed"
    """The node goes on with the size that it had before the coordinator restarted."""


REASONS: Final = tuple(BatchReason)
CODE: Final = {reason: code for code, reason in enumerate(REASONS)}
"""Code of each reason in arrays."""


class LocalStepsReason(StrEnum):
    """Reason why the local steps changed."""

    AMORTISES_COMMUNICATION = "amortises_communication"
    SHORTER_ROUNDS_PAY = "shorter_rounds_pay"
    MATCHES_SPEED = "matches_speed"
    """In buffered rounds, the node's work takes about as long as that of the fastest node."""


def by_latency(baseline: int, latency_ms: Floats) -> Floats:
    """Return baseline · √(latency / 25 ms), within [½, 4] times the baseline; the baseline without a latency."""
    factor = np.clip(np.sqrt(latency_ms / REFERENCE_LATENCY_MS), 0.5, 4.0)
    return baseline * np.where(np.isnan(factor), 1.0, factor)


def by_throughput(
    sizes: Floats, directions: Floats, rates: tuple[Floats, Floats, Floats], step: float
) -> tuple[Floats, Floats, Ints]:
    """Return the sizes, directions (+1, −1) and reason codes of hill climbing. Changes within the noise keep the size.

    Args:
        sizes: Present batch sizes.
        directions: Directions of the last move; 0 before the first.
        rates: Samples per second now and at the last move, and their noise; NaN if not measured.
        step: Factor of one move.
    """
    now, before, noise = rates
    change = now - before
    degrading = change < -0.5 * noise  # smoothing passes half of a change
    improving = change > 0.25 * noise
    first = (directions == 0) & ~np.isnan(now)
    turned = np.where(first, 1.0, np.where(degrading, -directions, directions))
    moved = np.where(first | degrading | improving, sizes * np.power(step, turned), sizes)
    reasons = np.full(len(sizes), CODE[BatchReason.THROUGHPUT_IMPROVING])
    reasons[degrading] = CODE[BatchReason.THROUGHPUT_DEGRADING]
    reasons[first] = CODE[BatchReason.PROBES_THROUGHPUT]
    return moved, turned, reasons
