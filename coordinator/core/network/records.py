"""What the monitor keeps of each link: one column per figure, one row per node. Each record is O(1)."""

import numpy as np

from hypergpu.common.config import MonitorConfig
from hypergpu.coordinator.core.network.quality import LOSS_MEMORY
from hypergpu.coordinator.core.table import Bools, Floats, Ints, NodeIndex, Ring, grown, quantiles

EXCHANGES = 16
"""Round communications of a link that are kept."""
_LEVEL_GAIN, _TREND_GAIN, _TREND_DAMPING = 0.5, 0.3, 0.95
"""Holt's linear trend, damped (Gardner & McKenzie, "Forecasting trends in time series", 1985)."""


class LinkRecords:
    """The measurements, and the running estimates that each of them updates."""

    def __init__(self, config: MonitorConfig) -> None:
        self.index = NodeIndex()
        self.version = 0
        """Changes with everything that is recorded."""
        self.latency_ms = Ring(config.history)
        """Round trips of the communications that succeeded."""
        self.outcomes = Ring(config.history)
        """1 for success, 0 for failure."""
        self.exchange_seconds = Ring(EXCHANGES)
        """Seconds that a node's communication took in a round, both ways and with retries."""
        self._floats = {
            name: np.zeros(0) for name in ("last_seen", "lost", "weight", "level", "trend", "noise", "then_ms")
        }
        self._ints = {
            name: np.zeros(0, np.int64)
            for name in ("streak", "seen", "forecast_at", "then_count", "quality", "told", "seen_before")
        }

    def add(self, node_id: str, now: float) -> bool:
        """A new link, in contact as of now; False if it is known."""
        row = self.index.add(node_id)
        if row is None:
            return False
        self.version += 1
        for ring in (self.latency_ms, self.outcomes, self.exchange_seconds):
            ring.grow(row + 1)
        self._floats = {name: grown(column, row + 1, 0.0) for name, column in self._floats.items()}
        self._ints = {name: grown(column, row + 1, 0) for name, column in self._ints.items()}
        self._floats["last_seen"][row] = now
        self._ints["quality"][row] = self._ints["told"][row] = -1
        self._floats["level"][row] = self._floats["then_ms"][row] = np.nan
        return True

    def column(self, name: str) -> Floats:
        """A column of floats by name, with spare capacity at the end."""
        return self._floats[name]

    def counter(self, name: str) -> Ints:
        """A column of integers by name, with spare capacity at the end."""
        return self._ints[name]

    def communications(self, rows: Ints, latency_ms: Floats, success: Bools, now: float) -> None:
        """One communication of each of these links ended; the rows differ."""
        self.version += 1
        floats, ints = self._floats, self._ints
        floats["lost"][rows] = LOSS_MEMORY * floats["lost"][rows] + ~success
        floats["weight"][rows] = LOSS_MEMORY * floats["weight"][rows] + 1.0
        self.outcomes.push_each(rows, success.astype(np.float64))
        ints["seen"][rows] += 1
        ints["streak"][rows] = np.where(success, 0, ints["streak"][rows] + 1)
        won = rows[success]
        floats["last_seen"][won] = now
        self.latency_ms.push_each(won, latency_ms[success])

    def communication(self, row: int, latency_ms: float | None, success: bool, now: float, times: int = 1) -> None:
        """The same for one link, its latency perhaps unknown, without the cost of arrays: called for every RPC.

        `times`: so many of them ended alike.
        """
        self.version += times
        losses, weights = self._floats["lost"], self._floats["weight"]
        lost, weight = losses.item(row), weights.item(row)
        for _ in range(times):
            lost = LOSS_MEMORY * lost + (not success)
            weight = LOSS_MEMORY * weight + 1.0
        losses[row], weights[row] = lost, weight
        self.outcomes.push(row, float(success), times)
        self._ints["seen"][row] += times
        if success:
            self._ints["streak"][row] = 0
            self._floats["last_seen"][row] = now
            if latency_ms is not None:
                self.latency_ms.push(row, latency_ms, times)
        else:
            self._ints["streak"][row] += times

    def exchanges(self, rows: Ints, seconds: Floats) -> None:
        """One round's communication of each of these links ended, or was given up after `seconds`; the rows differ.

        A value far outside what is usual begins a new history: a link that has changed is judged by what it is now.
        """
        ring = self.exchange_seconds
        known = ring.values[rows]
        centre = quantiles(known, [0.5])[0]
        spread = 1.4826 * quantiles(np.abs(known - centre[:, None]), [0.5])[0]
        limit = 8.0 * np.maximum(np.maximum(spread, 0.15 * centre), 1e-6)
        with np.errstate(invalid="ignore"):
            changed = (ring.filled(rows) >= 4) & (np.abs(seconds - centre) > limit)
        ring.clear(rows[changed])
        ring.push_each(rows, seconds)
        self._floats["then_ms"][rows] = self._recent_ms(rows)
        self._ints["then_count"][rows] = self.latency_ms.counts[rows]

    def unreported(self, rows: Ints) -> Bools:
        """Of which links no communication was recorded since their last round."""
        silent: Bools = self._ints["seen"][rows] == self._ints["seen_before"][rows]
        return silent

    def rounds_seen(self, rows: Ints) -> None:
        """A round of these links is over."""
        self._ints["seen_before"][rows] = self._ints["seen"][rows]

    def exchange_scale(self, rows: Ints) -> Floats:
        """How much slower each link answers now than when its last round was measured, from later round trips."""
        then = self._floats["then_ms"][rows]
        fresh = (self.latency_ms.counts[rows] - self._ints["then_count"][rows] >= 3) & (then > 0)
        scale = np.ones(len(rows))
        scale[fresh] = np.clip(self._recent_ms(rows[fresh]) / then[fresh], 0.05, 20.0)
        return np.where((scale > 0.67) & (scale < 1.5), 1.0, scale)  # within the noise of three samples

    def advance_forecasts(self) -> None:
        """Take the median of each link's round trips since the last call as Holt's next observation."""
        every = np.arange(len(self.index))
        counts = self.latency_ms.counts[every]
        fresh = counts - self._ints["forecast_at"][every]
        rows = every[fresh > 0]
        if not len(rows):
            return
        taken = np.minimum(fresh[rows], 8)
        window = self.latency_ms.latest(rows, 8)
        window[np.arange(8, 0, -1)[None, :] > taken[:, None]] = np.nan
        seen = quantiles(window, [0.5])[0]
        level, trend, noise = (self._floats[name][rows] for name in ("level", "trend", "noise"))
        first = np.isnan(level)
        expected = level + _TREND_DAMPING * trend
        new_level = np.where(first, seen, _LEVEL_GAIN * seen + (1 - _LEVEL_GAIN) * expected)
        new_trend = _TREND_GAIN * (new_level - level) + (1 - _TREND_GAIN) * _TREND_DAMPING * trend
        self._floats["level"][rows] = new_level
        self._floats["trend"][rows] = np.where(first, 0.0, new_trend)
        self._floats["noise"][rows] = np.where(first, 0.25 * seen, 0.8 * noise + 0.2 * np.abs(seen - expected))
        self._ints["forecast_at"][rows] = counts[rows]

    def _recent_ms(self, rows: Ints) -> Floats:
        """Median of the last three round trips."""
        median: Floats = quantiles(self.latency_ms.latest(rows, 3), [0.5])[0]
        return median
