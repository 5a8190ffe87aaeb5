"""Measurements of every link: one column per figure, one row per node. Adding one is O(1)."""

from dataclasses import dataclass, field, fields

import numpy as np

from hypergpu.common.config import MonitorConfig
from hypergpu.common.statistics import MAD_TO_SIGMA, quantiles
from hypergpu.coordinator.core.links.quality import LOSS_MEMORY
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, NodeIndex, RingBuffer, grow_column

EXCHANGES = 16
"""Round communications of a link that are kept."""
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
    """Running figures, one entry per link, with spare capacity at the end."""

    last_seen: Floats = field(default_factory=no_floats)
    """Time of the last sign of life."""
    lost: Floats = field(default_factory=no_floats)
    """Lost communications, weighted by age (`LOSS_MEMORY`)."""
    weight: Floats = field(default_factory=no_floats)
    """All communications, weighted alike."""
    level: Floats = field(default_factory=no_floats)
    """Smoothed round trip in milliseconds; NaN before the first."""
    trend: Floats = field(default_factory=no_floats)
    """Its change per observation."""
    noise: Floats = field(default_factory=no_floats)
    """Smoothed absolute error of the forecast."""
    reference_ms: Floats = field(default_factory=no_floats)
    """Round trip when the last round was measured; NaN before the first."""
    reference_count: Ints = field(default_factory=no_integers)
    """Round trips that were known then."""
    streak: Ints = field(default_factory=no_integers)
    """Failures since the last success."""
    seen: Ints = field(default_factory=no_integers)
    """Communications in all."""
    seen_by_round: Ints = field(default_factory=no_integers)
    """Communications in all when the last round ended."""
    forecast_at: Ints = field(default_factory=no_integers)
    """Round trips that the forecast has used."""
    quality: Ints = field(default_factory=no_integers)
    """Class at the last refresh; -1 before the first."""
    reported: Ints = field(default_factory=no_integers)
    """Class that was last reported as a change; -1 for none."""

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` links."""
        for column in fields(self):
            setattr(self, column.name, grow_column(getattr(self, column.name), rows, 0.0))


class LinkHistory:
    """The measurements, and the running figures that each of them updates."""

    def __init__(self, config: MonitorConfig) -> None:
        self.index = NodeIndex()
        self.version = 0
        """Changes with everything that is recorded."""
        self.latency_ms = RingBuffer(config.history)
        """Round trips of the communications that succeeded."""
        self.outcomes = RingBuffer(config.history)
        """1 for success, 0 for failure."""
        self.exchange_seconds = RingBuffer(EXCHANGES)
        """Seconds that a node's communication took in a round, both ways and with retries."""
        self.columns = Columns()

    def add(self, node_id: str, now: float) -> bool:
        """Add a link, in contact as of now; False if it is known."""
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
        """Record that one communication of each of these links ended; the rows differ."""
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
        """Record one communication of one link, without the cost of arrays: called for every RPC.

        Args:
            row: the link.
            latency_ms: round trip; None if it is unknown.
            success: whether it arrived.
            now: the present.
            times: communications that ended alike.
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
        """Record that one round's communication of each of these links ended, or was given up after `seconds`.

        The rows differ. A value far outside the usual range begins a new history, since the link has changed.
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
        """Return which links had no communication since their last round."""
        silent: Bools = self.columns.seen[rows] == self.columns.seen_by_round[rows]
        return silent

    def rounds_seen(self, rows: Ints) -> None:
        """Record that a round of these links is over."""
        self.columns.seen_by_round[rows] = self.columns.seen[rows]

    def exchange_scale(self, rows: Ints) -> Floats:
        """Return how much slower each link answers now than when its last round was measured."""
        reference = self.columns.reference_ms[rows]
        fresh = (self.latency_ms.counts[rows] - self.columns.reference_count[rows] >= 3) & (reference > 0)
        scale = np.ones(len(rows))
        scale[fresh] = np.clip(self._recent_ms(rows[fresh]) / reference[fresh], 0.05, 20.0)
        return np.where((scale > 0.67) & (scale < 1.5), 1.0, scale)  # within the noise of three samples

    def advance_forecasts(self) -> None:
        """Use the median of each link's round trips since the last call as Holt's next observation."""
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
