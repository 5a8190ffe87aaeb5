"""Batch sizes from latency and throughput, as functions over arrays of nodes. GOODPUT is in its own module."""

from enum import StrEnum
from typing import Final

import numpy as np

from hypergpu.coordinator.core.node_arrays import Floats, Ints

REFERENCE_LATENCY_MS = 25.0
"""Round trip at which LATENCY_BASED gives the baseline."""


class BatchSizeStrategy(StrEnum):
    """How batch sizes are chosen."""

    FIXED = "fixed"
    """The baseline for all."""
    LATENCY_BASED = "latency_based"
    """High latency: larger batches, so that fewer exchanges carry as many samples; low: smaller."""
    THROUGHPUT_BASED = "throughput_based"
    """While throughput improves keep the direction, when it degrades reverse it."""
    HYBRID = "hybrid"
    """60 % latency, 40 % throughput."""
    GOODPUT = "goodput"
    """The sizes, and local steps, of most learning progress per second."""


class BatchReason(StrEnum):
    """Why a batch size changed."""

    BASELINE = "baseline"
    """Back to the configured size: the strategy is FIXED, or adaptation is off."""
    LATENCY_HIGH = "latency_high"
    LATENCY_LOW = "latency_low"
    THROUGHPUT_IMPROVING = "throughput_improving"
    THROUGHPUT_DEGRADING = "throughput_degrading"
    PROBES_THROUGHPUT = "probes_throughput"
    """Only one size was ever measured: a first step tells which way throughput improves."""
    HYBRID = "latency_and_throughput"
    FILLS_IDLE_TIME = "fills_idle_time"
    """The node would wait at the barrier: it takes more samples meanwhile."""
    SHORTENS_ROUND = "shortens_round"
    """The node is what the others wait for: it takes fewer."""
    MORE_PROGRESS_PER_SECOND = "more_progress_per_second"
    """The whole plan of the round changed, at the cluster's best goodput."""
    ROLLED_BACK = "rolled_back"


REASONS: Final = tuple(BatchReason)
CODE: Final = {reason: code for code, reason in enumerate(REASONS)}
"""Number of each reason, for arrays."""


class LearningRateReason(StrEnum):
    """Why the learning rate or the local steps changed."""

    FOLLOWS_TOTAL_BATCH = "follows_total_batch"
    AMORTISES_COMMUNICATION = "amortises_communication"
    SHORTER_ROUNDS_PAY = "shorter_rounds_pay"


def by_latency(baseline: int, latency_ms: Floats) -> Floats:
    """The baseline times √(latency / 25 ms), between half of it and four times it; the baseline where none is known."""
    factor = np.clip(np.sqrt(latency_ms / REFERENCE_LATENCY_MS), 0.5, 4.0)
    return baseline * np.where(np.isnan(factor), 1.0, factor)


def by_throughput(
    sizes: Floats, directions: Floats, rates: tuple[Floats, Floats, Floats], step: float
) -> tuple[Floats, Floats, Ints]:
    """Return the sizes, directions (+1, −1) and reason codes of hill climbing. A change within the noise keeps a size.

    Args:
        sizes: present batches.
        directions: of the last move; 0 where there was none yet.
        rates: samples per second now, at the last move, and their noise; NaN where not measured.
        step: factor of one move.
    """
    now, before, noise = rates
    change = now - before
    degrading = change < -0.5 * noise  # half of an off is what the smoothing lets through
    improving = change > 0.25 * noise
    first = (directions == 0) & ~np.isnan(now)
    turned = np.where(first, 1.0, np.where(degrading, -directions, directions))
    moved = np.where(first | degrading | improving, sizes * np.power(step, turned), sizes)
    reasons = np.full(len(sizes), CODE[BatchReason.THROUGHPUT_IMPROVING])
    reasons[degrading] = CODE[BatchReason.THROUGHPUT_DEGRADING]
    reasons[first] = CODE[BatchReason.PROBES_THROUGHPUT]
    return moved, turned, reasons
