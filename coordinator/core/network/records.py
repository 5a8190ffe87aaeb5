"""What the monitor keeps of each link: one column per figure, one row per node. Each record is O(1)."""

import numpy as np

from common.config import MonitorConfig
from coordinator.core.table import Floats, Ints, NodeIndex, Ring, grown

EXCHANGES = 16
"""Round communications of a link that are kept."""
_LOSS_MEMORY = 0.94
"""Weight of the past in the smoothed loss: about the last 16 communications count."""
_LEVEL_GAIN, _TREND_GAIN, _TREND_DAMPING = 0.5, 0.3, 0.95
"""Holt's linear trend, damped (Gardner & McKenzie, "Forecasting trends in time series", 1985)."""


class LinkRecords:
    """The measurements, and the running estimates that each of them updates."""

    def __init__(self, config: MonitorConfig) -> None:
        self.index = NodeIndex()
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
            for name in ("streak", "seen", "failed", "forecast_at", "then_count", "quality", "seen_before")
        }

    def add(self, node_id: str, now: float) -> bool:
        """A new link, in contact as of now; False if it is known."""
        row = self.index.add(node_id)
        if row is None:
            return False
        for ring in (self.latency_ms, self.outcomes, self.exchange_seconds):
            ring.grow(row + 1)
        self._floats = {name: grown(column, row + 1, 0.0) for name, column in self._floats.items()}
        self._ints = {name: grown(column, row + 1, 0) for name, column in self._ints.items()}
        self._floats["last_seen"][row] = now
        self._ints["quality"][row] = -1
        self._floats["level"][row] = self._floats["then_ms"][row] = np.nan
        return True

    def column(self, name: str) -> Floats:
        """A column of floats by name, with spare capacity at the end."""
        return self._floats[name]

    def counter(self, name: str) -> Ints:
        """A column of integers by name, with spare capacity at the end."""
        return self._ints[name]

    def communication(self, row: int, latency_ms: float, success: bool, now: float) -> None:
        """One communication ended."""
        floats, ints = self._floats, self._ints
        floats["lost"][row] = _LOSS_MEMORY * floats["lost"][row] + (not success)
        floats["weight"][row] = _LOSS_MEMORY * floats["weight"][row] + 1.0
        self.outcomes.push(row, float(success))
        ints["seen"][row] += 1
        if success:
            ints["streak"][row] = 0
            floats["last_seen"][row] = now
            self.latency_ms.push(row, latency_ms)
        else:
            ints["failed"][row] += 1
            ints["streak"][row] += 1

    def exchange(self, row: int, seconds: float) -> None:
        """One round's communication ended, or was given up after `seconds`.

        A value far outside what is usual begins a new history: a link that has changed is judged by what it is now.
        """
        ring = self.exchange_seconds
        count = min(int(ring.counts[row]), EXCHANGES)
        if count >= 4:
            known = ring.values[row, :count]
            centre = float(np.median(known))
            spread = 1.4826 * float(np.median(np.abs(known - centre)))
            if abs(seconds - centre) > 8.0 * max(spread, 0.15 * centre, 1e-6):
                ring.values[row] = np.nan
                ring.counts[row] = 0
        ring.push(row, seconds)
        self._floats["then_ms"][row] = self._recent_ms(row)
        self._ints["then_count"][row] = self.latency_ms.counts[row]

    def unreported(self, row: int) -> bool:
        """No communication of this link was recorded since its last round."""
        return bool(self._ints["seen"][row] == self._ints["seen_before"][row])

    def round_seen(self, row: int) -> None:
        """A round of this link is over."""
        self._ints["seen_before"][row] = self._ints["seen"][row]

    def exchange_scale(self, rows: Ints) -> Floats:
        """How much slower each link answers now than when its last round was measured, from later round trips."""
        then = self._floats["then_ms"][rows]
        fresh = self.latency_ms.counts[rows] - self._ints["then_count"][rows] >= 3
        scale = np.ones(len(rows))
        for at in np.flatnonzero(fresh & (then > 0)):
            scale[at] = np.clip(self._recent_ms(int(rows[at])) / then[at], 0.05, 20.0)
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
        seen = np.nanmedian(window, axis=1)
        level, trend, noise = (self._floats[name][rows] for name in ("level", "trend", "noise"))
        first = np.isnan(level)
        expected = level + _TREND_DAMPING * trend
        new_level = np.where(first, seen, _LEVEL_GAIN * seen + (1 - _LEVEL_GAIN) * expected)
        new_trend = _TREND_GAIN * (new_level - level) + (1 - _TREND_GAIN) * _TREND_DAMPING * trend
        self._floats["level"][rows] = new_level
        self._floats["trend"][rows] = np.where(first, 0.0, new_trend)
        self._floats["noise"][rows] = np.where(first, 0.25 * seen, 0.8 * noise + 0.2 * np.abs(seen - expected))
        self._ints["forecast_at"][rows] = counts[rows]

    def _recent_ms(self, row: int) -> float:
        ring = self.latency_ms
        count = int(ring.counts[row])
        if not count:
            return np.nan
        back = (count - 1 - np.arange(min(3, count, ring.length))) % ring.length
        return float(np.median(ring.values[row, back]))
