"""Measurements of every link, one column per figure and one row per node. Recording a measurement takes O(1)."""

from dataclasses import dataclass, field, fields

import numpy as np

from hypergpu.common.config import MonitorConfig
from hypergpu.common.statistics import MAD_TO_SIGMA, quantiles
from hypergpu.coordinator.core.links.quality import LOSS_MEMORY
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, NodeIndex, RingBuffer, grow_column

EXCHANGES = 16
"""Number of round communications kept per link."""
_LEVEL_GAIN, _TREND_GAIN, _TREND_DAMPING = 0.5, 0.3, 0.95
"""Holt's linear trend, damped (Gardner & McKenzie, "Forecasting trends in time series", 1985)."""


def no_floats() -> Floats:
    """Return an empty column."""
    return np.zeros(0)


def no_integers() -> Ints:
    """Return an empty column."""
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Columns:
    """Running figures with one entry per link and spare capacity at the end."""

    last_seen: Floats = field(default_factory=no_floats)
    """Time of the last successful communication, or of the registration."""
    lost: Floats = field(default_factory=no_floats)
    """Lost communications, weighted by age (`LOSS_MEMORY`)."""
    weight: Floats = field(default_factory=no_floats)
    """All communications, weighted in the same way."""
    level: Floats = field(default_factory=no_floats)
    """Smoothed round trip in milliseconds; NaN before the first."""
    trend: Floats = field(default_factory=no_floats)
    """Change of `level` per observation."""
    noise: Floats = field(default_factory=no_floats)
    """Smoothed absolute error of the forecast in milliseconds."""
    reference_ms: Floats = field(default_factory=no_floats)
    """Median round trip when the last round was measured; NaN before the first."""
    reference_count: Ints = field(default_factory=no_integers)
    """Number of round trips recorded at that time."""
    streak: Ints = field(default_factory=no_integers)
    """Number of failures since the last success."""
    seen: Ints = field(default_factory=no_integers)
    """Number of communications."""
    seen_by_round: Ints = field(default_factory=no_integers)
    """Value of `seen` at the end of the last round."""
    forecast_at: Ints = field(default_factory=no_integers)
    """Number of round trips that the forecast has used."""
    quality: Ints = field(default_factory=no_integers)
    """Class number at the last refresh; -1 before the first."""
    reported: Ints = field(default_factory=no_integers)
    """Class number that was last reported as a change; -1 for none."""

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` links."""
        for column in fields(self):
            setattr(self, column.name, grow_column(getattr(self, column.name), rows, 0.0))


class LinkHistory:
    """Measurements of all links and the running figures derived from them."""

    def __init__(self, config: MonitorConfig) -> None:
        self.index = NodeIndex()
        self.version = 0
        """Counter that increases with every recorded measurement."""
        self.latency_ms = RingBuffer(config.history)
        """Round trips of successful communications."""
        self.outcomes = RingBuffer(config.history)
        """1 for success, 0 for failure."""
        self.exchange_seconds = RingBuffer(EXCHANGES)
        """Round communication in seconds, in both directions and with retries."""
        self.columns = Columns()

    def add(self, node_id: str, now: float) -> bool:
        """Add a link whose last contact is `now`; return False if the link exists already."""
        row = self.index.add(node_id)
        if row is None:
            return False
        self.version += 1
        for ring in (self.latency_ms, self.outcomes, self.exchange_seconds):
            ring.grow(row + 1)
        columns = self.columns
        columns.grow(row + 1)
        columns.last_seen[row] = now
        columns.quality[row] = columns.reported[row] = -1
        columns.level[row] = columns.reference_ms[row] = np.nan
        return True

    def communications(self, rows: Ints, latency_ms: Floats, success: Bools, now: float) -> None:
        """Record one finished communication of each link; the rows must be distinct."""
        self.version += 1
        columns = self.columns
        columns.lost[rows] = LOSS_MEMORY * columns.lost[rows] + ~success
        columns.weight[rows] = LOSS_MEMORY * columns.weight[rows] + 1.0
        self.outcomes.push_each(rows, success.astype(np.float64))
        columns.seen[rows] += 1
        columns.streak[rows] = np.where(success, 0, columns.streak[rows] + 1)
        won = rows[success]
        columns.last_seen[won] = now
        self.latency_ms.push_each(won, latency_ms[success])

    def communication(self, row: int, latency_ms: float | None, success: bool, now: float, times: int = 1) -> None:
        """Record a communication of one link. It runs for every RPC, so it avoids the cost of array operations.

        Args:
            row: Row of the link.
            latency_ms: Round trip; None if unknown.
            success: Whether the communication succeeded.
            now: Current time in seconds.
            times: Number of communications with this outcome.
        """
        self.version += times
        losses, weights = self.columns.lost, self.columns.weight
        lost, weight = losses.item(row), weights.item(row)
        for _ in range(times):
            lost = LOSS_MEMORY * lost + (not success)
            weight = LOSS_MEMORY * weight + 1.0
        losses[row], weights[row] = lost, weight
        self.outcomes.push(row, float(success), times)
        self.columns.seen[row] += times
        if success:
            self.columns.streak[row] = 0
            self.columns.last_seen[row] = now
            if latency_ms is not None:
                self.latency_ms.push(row, latency_ms, times)
        else:
            self.columns.streak[row] += times

    def exchanges(self, rows: Ints, seconds: Floats) -> None:
        """Record the round communication of each link: the seconds until it ended or was abandoned.

        The rows must be distinct. A value far outside the usual range clears the history, since the link has changed.
        """
        ring = self.exchange_seconds
        known = ring.values[rows]
        centre = quantiles(known, [0.5])[0]
        spread = MAD_TO_SIGMA * quantiles(np.abs(known - centre[:, None]), [0.5])[0]
        limit = 8.0 * np.maximum(np.maximum(spread, 0.15 * centre), 1e-6)
        with np.errstate(invalid="ignore"):
            changed = (ring.filled(rows) >= 4) & (np.abs(seconds - centre) > limit)
        ring.clear(rows[changed])
        ring.push_each(rows, seconds)
        self.columns.reference_ms[rows] = self._recent_ms(rows)
        self.columns.reference_count[rows] = self.latency_ms.counts[rows]

    def unreported(self, rows: Ints) -> Bools:
        """Return a mask of the links without communication since their last round."""
        silent: Bools = self.columns.seen[rows] == self.columns.seen_by_round[rows]
        return silent

    def rounds_seen(self, rows: Ints) -> None:
        """Record the end of a round for these links."""
        self.columns.seen_by_round[rows] = self.columns.seen[rows]

    def exchange_scale(self, rows: Ints) -> Floats:
        """Return the factor by which each round trip has grown since the link's last round was measured."""
        reference = self.columns.reference_ms[rows]
        fresh = (self.latency_ms.counts[rows] - self.columns.reference_count[rows] >= 3) & (reference > 0)
        scale = np.ones(len(rows))
        scale[fresh] = np.clip(self._recent_ms(rows[fresh]) / reference[fresh], 0.05, 20.0)
        return np.where((scale > 0.67) & (scale < 1.5), 1.0, scale)  # within the noise of three samples

    def advance_forecasts(self) -> None:
        """Advance Holt's method by one observation per link: the median of its round trips since the last call."""
        every = np.arange(len(self.index))
        counts = self.latency_ms.counts[every]
        fresh = counts - self.columns.forecast_at[every]
        rows = every[fresh > 0]
        if not len(rows):
            return
        taken = np.minimum(fresh[rows], 8)
        window = self.latency_ms.latest(rows, 8)
        window[np.arange(8, 0, -1)[None, :] > taken[:, None]] = np.nan
        seen = quantiles(window, [0.5])[0]
        columns = self.columns
        level, trend, noise = columns.level[rows], columns.trend[rows], columns.noise[rows]
        first = np.isnan(level)
        expected = level + _TREND_DAMPING * trend
        new_level = np.where(first, seen, _LEVEL_GAIN * seen + (1 - _LEVEL_GAIN) * expected)
        new_trend = _TREND_GAIN * (new_level - level) + (1 - _TREND_GAIN) * _TREND_DAMPING * trend
        columns.level[rows] = new_level
        columns.trend[rows] = np.where(first, 0.0, new_trend)
        columns.noise[rows] = np.where(first, 0.25 * seen, 0.8 * noise + 0.2 * np.abs(seen - expected))
        self.columns.forecast_at[rows] = counts[rows]

    def _recent_ms(self, rows: Ints) -> Floats:
        """Return the median of the last three round trips."""
        median: Floats = quantiles(self.latency_ms.latest(rows, 3), [0.5])[0]
        return median
