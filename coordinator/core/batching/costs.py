"""Cost of a step on each node, fitted to measurements, and the rate at which each node delivers samples."""

import numpy as np

from hypergpu.common.step_times import StepTimes
from hypergpu.coordinator.core.batching.goodput import StepCost
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column

_FORGET = 0.85
"""Weight of the past per round: averages over about the last seven rounds."""
_LEAST_SAMPLE_SHARE = 0.01
"""Smallest cost of a sample, as a share of its part of a step: no sample is free, however noisy the timings."""
_OVERHEAD_MEMORY = 0.7
"""Weight of the past in the measured overhead."""


class RoundOverhead:
    """Time of a round beyond what its nodes need: step, evaluation, opening, and the slowest of their links."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Expected overhead of a round."""
        self._opened_at: float | None = None
        self._expected: float | None = None

    def open_round(self, now: float) -> None:
        """Record the opening of a round, and measure the one before it if it was planned and not interrupted."""
        opened_at, self._opened_at = self._opened_at, now
        if opened_at is None or self._expected is None:
            return
        fresh = min(max(now - opened_at - (self._expected - self.seconds), 0.0), self._expected)
        self.seconds = _OVERHEAD_MEMORY * self.seconds + (1.0 - _OVERHEAD_MEMORY) * fresh if self.seconds else fresh
        self._expected = None

    def expect(self, seconds: float | None) -> None:
        """Set the planned duration of the open round, overhead included; None if nothing was planned."""
        self._expected = seconds

    def interrupt(self) -> None:
        """Forget the open round: it was abandoned, and its time says nothing."""
        self._opened_at = None


class ComputeCosts:
    """Least-squares fit of seconds per step = fixed + per_sample · batch for each node, with exponential forgetting.

    For a node that has run one batch size only, the proportion of the two parts is that which was known last: from
    earlier sizes, or from what the node announced. If none is known, the cost is taken as proportional above that size
    and as falling half as fast below it: cautious guesses in both directions.
    """

    def __init__(self) -> None:
        self._sums: Floats = np.zeros((0, 5))  # 1, x, y, x², xy
        self._rate: Floats = np.zeros((0, 3))  # samples per second: smoothed, at the last move, noise
        self._fixed_samples: Floats = np.zeros(0)  # samples that take as long as the fixed part, as known last
        self.overhead = RoundOverhead()
        """Overhead of each round, whatever its nodes do."""
        self._restarts = self._watched_seconds = 0.0

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self._sums = grow_column(self._sums, rows, 0.0)
        self._rate = grow_column(self._rate, rows, np.nan)
        self._fixed_samples = grow_column(self._fixed_samples, rows, np.nan)

    def announce(self, row: int, times: StepTimes) -> None:
        """Record the time of a node's steps by its own account: its proportion is used until it was measured."""
        if np.isnan(self._fixed_samples[row]):
            self._fixed_samples[row] = times.fixed_samples

    def observe(self, rows: Ints, batches: Floats, step_seconds: Floats) -> None:
        """Record the batch size and duration of a step on each node; the rows must be distinct."""
        sums = self._sums[rows]
        usual = sums[:, 2] / np.maximum(sums[:, 0], 1e-12)
        bounded = np.where(usual > 0, np.clip(step_seconds, 0.1 * usual, 10.0 * usual), step_seconds)
        fresh = np.stack([np.ones(len(rows)), batches, bounded, batches * batches, batches * bounded], axis=1)
        self._sums[rows] = _FORGET * sums + fresh
        told_apart, fixed, per_sample = _line(self._sums[rows])
        known = np.where(told_apart, fixed / np.maximum(per_sample, 1e-12), self._fixed_samples[rows])
        self._fixed_samples[rows] = known

    def observe_rate(self, rows: Ints, samples_per_second: Floats) -> None:
        """Record the throughput of a round, with communication, on each node; the rows must be distinct."""
        smooth, moved, noise = self._rate[rows].T
        first = np.isnan(smooth)
        off = np.where(first, 0.0, samples_per_second - smooth)
        now = np.where(first, samples_per_second, smooth + 0.5 * off)
        spread = np.where(first, 0.1 * samples_per_second, 0.7 * noise + 0.3 * np.abs(off))
        self._rate[rows] = np.stack([now, np.where(first, now, moved), spread], axis=1)

    def record_restarts(self, restarts: int, seconds: float) -> None:
        """Record how many node processes restarted in a round, and the total `seconds` that all of them ran."""
        self._restarts = _FORGET * self._restarts + restarts
        self._watched_seconds = _FORGET * self._watched_seconds + seconds

    @property
    def restarts_per_second(self) -> float:
        """Rate at which a node process ends, over all nodes: a single node ends too rarely to measure."""
        return self._restarts / self._watched_seconds if self._watched_seconds > 0 else 0.0

    def rates(self, rows: Ints) -> tuple[Floats, Floats, Floats]:
        """Return the samples per second of each node now and at its last move, and their noise; NaN if not measured."""
        now, before, noise = self._rate[rows].T
        return now, before, noise

    def used(self, rows: Ints) -> None:
        """Record that the batches of these nodes changed: later rates are compared with the present ones."""
        self._rate[rows, 1] = self._rate[rows, 0]

    def measured(self, rows: Ints) -> Bools:
        """Return a mask of the nodes of which a step was measured."""
        known: Bools = self._sums[rows, 0] > 0
        return known

    def fit(self, rows: Ints) -> StepCost:
        """Return the cost of a step on each node.

        A node without measurements gets the median of the cluster, or 0 if no node was measured.
        """
        sums, known = self._sums[rows], self._fixed_samples[rows]
        measured = sums[:, 0] > 0
        told_apart, fixed, per_sample = _line(sums)
        mean_x, mean_y = _means(sums)
        is_known = ~np.isnan(known)
        guessed = mean_y / np.maximum(mean_x + np.where(is_known, known, 0.0), 1e-12)
        per_sample = np.where(told_apart, per_sample, guessed)
        fixed = np.where(told_apart, fixed, np.maximum(mean_y - guessed * mean_x, 0.0))
        if measured.any():
            fixed = np.where(measured, fixed, np.median(fixed[measured]))
            per_sample = np.where(measured, per_sample, np.median(per_sample[measured]))
        doubtful_below = np.where(told_apart | is_known, 0.0, mean_x)
        return StepCost(fixed, per_sample, doubtful_below, self.restarts_per_second)


def _means(sums: Floats) -> tuple[Floats, Floats]:
    """Return the mean batch and the mean duration of a step; 0 if none was measured."""
    weight, x, y = sums[:, :3].T
    safe = np.where(weight > 0, weight, 1.0)
    return x / safe, y / safe


def _line(sums: Floats) -> tuple[Bools, Floats, Floats]:
    """Return where batches differ enough to fit a line, and its fixed part and slope; the slope is above 0."""
    mean_x, mean_y = _means(sums)
    weight, xx, xy = sums[:, 0], sums[:, 3], sums[:, 4]
    safe = np.where(weight > 0, weight, 1.0)
    variance = xx / safe - mean_x**2
    proportional = mean_y / np.maximum(mean_x, 1e-12)
    slope = (xy / safe - mean_x * mean_y) / np.maximum(variance, 1e-12)
    per_sample = np.clip(slope, _LEAST_SAMPLE_SHARE * proportional, proportional)
    told_apart: Bools = variance > (0.1 * mean_x) ** 2
    return told_apart, np.maximum(mean_y - per_sample * mean_x, 0.0), per_sample
