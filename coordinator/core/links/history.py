"""Measurements of every link, one column per figure and one row per node. Recording a measurement takes O(1)."""

from dataclasses import dataclass, field, fields

import numpy as np

from hypergpu.common.config import MonitorConfig
from hypergpu.common.statistics import MAD_TO_SIGMA, quantiles
from hypergpu.coordinator.core.links.changes import RETURN, find_changes, find_returns
from hypergpu.coordinator.core.links.quality import LOSS_MEMORY
from hypergpu.coordinator.core.links.rates import LinkRate, RateEstimator
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, NodeIndex, RingBuffer, grow_column

ROUND_COMMUNICATIONS = 16
"""Number of round communications kept per link."""
_RECENT = 3
"""Round trips that show together that a link has changed. One or two may be jitter."""
_REFERENCE = 16
"""Round trips before the last measured round that show what is usual on a link."""
_LEAST_REFERENCE = 8
"""Fewest of them that a change is judged by."""
MOST_CHANGE = 2.0
"""Largest factor, and its reciprocal the smallest, by which round trips may change an expected communication."""
_PROBES = 2
"""Round trips after a setback that show that a link has recovered."""
_UNLIKELY = 1e-4
"""Probability of failures in a row by packet loss below which they were an outage."""
_LEAST_LOSS = 0.05
"""Packet loss that any link may have."""
_MIXED_STEPS = 8
"""Parts in which successes and failures of unknown order are recorded in turn."""
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
    reference_low: Floats = field(default_factory=no_floats)
    """Smallest of the round trips before the last measured round; NaN if there were too few."""
    reference_high: Floats = field(default_factory=no_floats)
    """Largest of the round trips before the last measured round; NaN if there were too few."""
    reference_count: Ints = field(default_factory=no_integers)
    """Number of round trips recorded at that time."""
    before_low: Floats = field(default_factory=no_floats)
    """Smallest of the round trips before the latest change of the link; NaN without a change."""
    before_high: Floats = field(default_factory=no_floats)
    """Largest of them."""
    changed_at: Ints = field(default_factory=no_integers)
    """Number of round trips recorded at the latest change."""
    setback_seconds: Floats = field(default_factory=no_floats)
    """Communication of the last round if it was far slower than usual; NaN if it was not."""
    setback_count: Ints = field(default_factory=no_integers)
    """Number of round trips recorded at that time, loaded ones included."""
    gap_seconds: Floats = field(default_factory=no_floats)
    """Longest recent silence between two successes."""
    gap_ended_at: Floats = field(default_factory=no_floats)
    counted_gap_seconds: Floats = field(default_factory=no_floats)
    """Longest silence between two successes since the counters of the node were read."""
    outage_lost: Floats = field(default_factory=no_floats)
    """Value of `lost` before the present streak of failures."""
    outage_weight: Floats = field(default_factory=no_floats)
    """Value of `weight` before the present streak of failures."""
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
    up_bytes: Floats = field(default_factory=no_floats)
    """Payload of the coming update; 0 if unknown."""
    down_bytes: Floats = field(default_factory=no_floats)
    """Payload of the coming parameters; 0 if unknown."""

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
        """Round trips of successful communications while nothing of the run was in their way."""
        self.loaded_ms = RingBuffer(ROUND_COMMUNICATIONS)
        """Round trips of successful communications behind a transfer of the run."""
        self.outcomes = RingBuffer(config.history)
        """1 for success, 0 for failure."""
        self.round_communication_seconds = RingBuffer(ROUND_COMMUNICATIONS)
        """Round communication in seconds, in both directions and with retries."""
        self.uploads: list[RateEstimator] = []
        """Rate from each node to the coordinator."""
        self.downloads: list[RateEstimator] = []
        """Rate from the coordinator to each node."""
        self.columns = Columns()
        self._outage_failures = max(2, config.offline_after_failures // 2)

    def add(self, node_id: str, now: float) -> bool:
        """Add a link whose last contact is `now`; return False if the link exists already."""
        row = self.index.add(node_id)
        if row is None:
            return False
        self.version += 1
        for ring in (self.latency_ms, self.loaded_ms, self.outcomes, self.round_communication_seconds):
            ring.grow(row + 1)
        self.uploads.append(RateEstimator())
        self.downloads.append(RateEstimator())
        columns = self.columns
        columns.grow(row + 1)
        columns.last_seen[row] = now
        columns.quality[row] = columns.reported[row] = -1
        for unknown in (
            columns.level,
            columns.reference_low,
            columns.reference_high,
            columns.before_low,
            columns.before_high,
            columns.setback_seconds,
        ):
            unknown[row] = np.nan
        return True

    def rounds(self, rows: Ints, now: float) -> None:
        """Record that the messages of a round passed each link. Their times are no round trips: they hold a model."""
        self.version += 1
        columns = self.columns
        for _ in range(2):
            columns.lost[rows] *= LOSS_MEMORY
            columns.weight[rows] = LOSS_MEMORY * columns.weight[rows] + 1.0
            self.outcomes.push_each(rows, np.ones(len(rows)))
        columns.seen[rows] += 2
        columns.streak[rows] = 0
        gap, former = now - columns.last_seen[rows], columns.gap_seconds[rows]
        longer = (gap >= former) | (now - columns.gap_ended_at[rows] > former)
        columns.gap_seconds[rows[longer]], columns.gap_ended_at[rows[longer]] = gap[longer], now
        columns.counted_gap_seconds[rows] = np.maximum(columns.counted_gap_seconds[rows], gap)
        columns.last_seen[rows] = now

    def round_trip(self, row: int, latency_ms: float, loaded: bool) -> None:
        """Record a round trip of one link; `loaded` tells that a transfer of the run was in its way.

        One that is no longer than usual although it was loaded had nothing to wait for.
        """
        self.version += 1
        unaffected = not loaded or latency_ms <= self.columns.level.item(row)
        (self.latency_ms if unaffected else self.loaded_ms).push(row, latency_ms)

    def mixed(self, row: int, lost: int, won: int, now: float) -> None:
        """Record communications of one link whose order is not known: more successes than failures, in a few steps."""
        steps = min(lost, _MIXED_STEPS)
        for step in range(steps):
            self.communication(row, False, now, _part(lost, step, steps))
            self.communication(row, True, now, _part(won, step, steps))

    def counted(self, row: int, lost: int, won: int, seconds: float) -> bool:
        """Note that the counters of a node were read; return whether what was lost was lost while its link was cut.

        It was if nothing passed the link for half of the time or more that so many communications take one after
        another, and if packet loss seldom loses so many of them in a row. `seconds` is the time over which they were
        counted.
        """
        gap = self.columns.counted_gap_seconds.item(row)
        self.columns.counted_gap_seconds[row] = 0.0
        in_a_row = seconds > 0.0 and gap * (lost + won) >= 0.5 * lost * seconds
        return lost >= self._outage_failures and in_a_row and self._is_unlikely(row, lost)

    def outage(self, row: int) -> None:
        """Record an outage that is over: one failure, and no packet loss."""
        self.version += 1
        self.outcomes.push(row, 0.0)

    def contact(self, row: int, now: float) -> None:
        """Record that something passed one link: it is not silent."""
        self.version += 1
        self._passed(row, now)

    def communication(self, row: int, success: bool, now: float, times: int = 1) -> None:
        """Record a communication of one link. It runs for every RPC, so it avoids the cost of array operations.

        Args:
            row: Row of the link.
            success: Whether the communication succeeded.
            now: Current time in seconds.
            times: Number of communications with this outcome.
        """
        self.version += times
        columns = self.columns
        losses, weights, streak = columns.lost, columns.weight, columns.streak.item(row)
        lost, weight = losses.item(row), weights.item(row)
        if success:
            if streak >= self._outage_failures and self._is_outage(row, streak):
                lost, weight = columns.outage_lost.item(row), columns.outage_weight.item(row)
                self.outcomes.erase_latest(row, streak - 1)  # of an outage, one failure counts
            columns.streak[row] = 0
            self._passed(row, now)
        else:
            if not streak:
                columns.outage_lost[row], columns.outage_weight[row] = lost, weight
            columns.streak[row] = streak + times
        for _ in range(times):
            weight = LOSS_MEMORY * weight + 1.0
        if lost or not success:
            failed = 0.0 if success else 1.0
            for _ in range(times):
                lost = LOSS_MEMORY * lost + failed
        losses[row], weights[row] = lost, weight
        self.outcomes.push(row, float(success), times)
        columns.seen[row] += times

    def _passed(self, row: int, now: float) -> None:
        """Note that something passed, and how long nothing had before. A gap is forgotten after its own length."""
        columns = self.columns
        gap, former = now - columns.last_seen.item(row), columns.gap_seconds.item(row)
        if gap >= former or now - columns.gap_ended_at.item(row) > former:
            columns.gap_seconds[row], columns.gap_ended_at[row] = gap, now
        if gap > columns.counted_gap_seconds.item(row):
            columns.counted_gap_seconds[row] = gap
        columns.last_seen[row] = now

    def _is_outage(self, row: int, streak: int) -> bool:
        """Return whether so many failures in a row are too many for the packet loss that the link had before."""
        lost, weight = self.columns.outage_lost.item(row), self.columns.outage_weight.item(row)
        return bool(max(lost / max(weight, 1.0), _LEAST_LOSS) ** streak < _UNLIKELY)

    def _is_unlikely(self, row: int, losses: int) -> bool:
        """Return whether so many losses in a row are too many for the packet loss of the link."""
        lost, weight = self.columns.lost.item(row), self.columns.weight.item(row)
        return bool(max(lost / max(weight, 1.0), _LEAST_LOSS) ** losses < _UNLIKELY)

    def round_communications(self, rows: Ints, seconds: Floats, now: float) -> None:
        """Record the round communication of each link: the seconds until it ended, at `now`, or was abandoned.

        The rows must be distinct. A value far below the usual range clears the history, since the link has changed. One
        far above it is a setback, which replaces the history only if the next one is as slow although the link seemed
        to have recovered (see `recovered`).
        """
        ring, columns = self.round_communication_seconds, self.columns
        known = ring.values[rows]
        centre = quantiles(known, [0.5])[0]
        spread = MAD_TO_SIGMA * quantiles(np.abs(known - centre[:, None]), [0.5])[0]
        far = 1.0 + 8.0 * np.maximum(spread / np.maximum(centre, 1e-9), 0.15)  # as a factor, in both directions
        settled = ring.filled(rows) >= 4
        with np.errstate(invalid="ignore"):
            faster, slower = settled & (seconds * far < centre), settled & (seconds > centre * far)
        before = columns.setback_seconds[rows]
        confirmed = slower & self.recovered(rows)
        ring.clear(rows[faster | confirmed])
        ring.push_each(rows[confirmed], before[confirmed])
        setback = slower & ~confirmed
        columns.setback_seconds[rows] = np.where(setback, seconds, np.nan)
        # Nothing else passed either for most of that time: the link was cut, and has recovered.
        cut = (columns.gap_seconds[rows] >= 0.5 * seconds) & (columns.gap_ended_at[rows] >= now - seconds)
        cut |= now - columns.last_seen[rows] >= 0.5 * seconds
        columns.setback_count[rows] = self._round_trips(rows) - np.where(cut, _PROBES, 0)
        ring.push_each(rows[~setback], seconds[~setback])
        usual = self.latency_ms.latest(rows, _REFERENCE)
        low, high = quantiles(usual, [0.0, 1.0])
        enough = self.latency_ms.filled(rows) >= _LEAST_REFERENCE
        columns.reference_low[rows] = np.where(setback, columns.reference_low[rows], np.where(enough, low, np.nan))
        columns.reference_high[rows] = np.where(setback, columns.reference_high[rows], np.where(enough, high, np.nan))
        columns.reference_count[rows] = self.latency_ms.counts[rows]

    def restart_round_communications(self, rows: Ints) -> None:
        """Forget the round communications of these links, but for the latest of each."""
        self.version += 1
        latest = self.round_communication_seconds.latest(rows, 1)[:, 0]
        self.round_communication_seconds.clear(rows)
        measured = ~np.isnan(latest)
        self.round_communication_seconds.push_each(rows[measured], latest[measured])
        self.columns.setback_seconds[rows] = np.nan

    def shift_round_communications(self, rows: Ints, seconds: Floats, least: Floats) -> None:
        """Add seconds to each measured communication of these links, which then is no shorter than `least`.

        A value that was below it stays as it is.
        """
        for known in (self.round_communication_seconds.values, self.columns.setback_seconds[:, None]):
            before = known[rows]
            known[rows] = np.maximum(before + seconds[:, None], np.minimum(before, least[:, None]))

    def recovered(self, rows: Ints) -> Bools:
        """Return a mask of the links with a setback that have answered since as they did before it.

        Heartbeats are a probe that costs nothing: what was slow because of an outage is usual again after it.
        """
        columns = self.columns
        since = self._round_trips(rows) - columns.setback_count[rows]
        sound = ~np.isnan(columns.setback_seconds[rows]) & (since >= _PROBES) & (columns.streak[rows] == 0)
        if sound.any():
            fastest = quantiles(self.latency_ms.latest(rows[sound], _PROBES), [0.0])[0]
            sound[sound] = ~(fastest > columns.reference_high[rows[sound]])
        recovered: Bools = sound
        return recovered

    def round_communication_samples(self, rows: Ints, count: int) -> Floats:
        """Return the latest communications of each link, oldest first, padded with NaN: shape (rows, count).

        After a setback it is the only one that counts, until the link has recovered.
        """
        samples = self.round_communication_seconds.latest(rows, count)
        setback = self.columns.setback_seconds[rows]
        held_back = ~np.isnan(setback) & ~self.recovered(rows)
        samples[held_back, :-1] = np.nan
        samples[held_back, -1] = setback[held_back]
        return samples

    def unreported(self, rows: Ints) -> Bools:
        """Return a mask of the links without communication since their last round."""
        silent: Bools = self.columns.seen[rows] == self.columns.seen_by_round[rows]
        return silent

    def rounds_seen(self, rows: Ints) -> None:
        """Record the end of a round for these links."""
        self.columns.seen_by_round[rows] = self.columns.seen[rows]

    def link_rates(self, rows: Ints) -> list[tuple[LinkRate, LinkRate]]:
        """Return the rates of each link, up and down."""
        quartile, median, upper = 1e-3 * self.latency_ms.quantiles(rows, [0.25, 0.5, 0.75])
        median = np.fmin(median, 1e-3 * self.loaded_ms.quantiles(rows, [0.0])[0])  # without any, the best one loaded
        jitter = 0.5 * (upper - quartile)
        return [
            (
                self.uploads[row].estimate(float(median[at]), float(jitter[at])),
                self.downloads[row].estimate(float(median[at]), float(jitter[at])),
            )
            for at, row in enumerate(rows)
        ]

    def round_communication_scale(self, rows: Ints) -> Floats:
        """Return the factor by which each round trip has changed since the link's last round was measured.

        It is 1 unless the latest round trips are all outside the range of those before that round, and then it is their
        distance from that range: jitter alone seldom leaves it, and never by much.
        """
        columns = self.columns
        scale = np.ones(len(rows))
        fresh = self.latency_ms.counts[rows] - columns.reference_count[rows] >= _RECENT
        fresh &= (columns.reference_low[rows] > 0) & np.isnan(columns.setback_seconds[rows])
        if fresh.any():
            low, high = quantiles(self.latency_ms.latest(rows[fresh], _RECENT), [0.0, 1.0])
            rise, fall = low / columns.reference_high[rows[fresh]], high / columns.reference_low[rows[fresh]]
            scale[fresh] = np.clip(np.where(rise > 1.0, rise, np.minimum(fall, 1.0)), 1.0 / MOST_CHANGE, MOST_CHANGE)
        return scale

    def is_high(self, rows: Ints) -> Bools:
        """Return a mask of the links whose latest round trips are all among the highest seventh of their history."""
        upper = self.latency_ms.quantiles(rows, [0.85])[0]
        high: Bools = quantiles(self.latency_ms.latest(rows, _RECENT), [0.0])[0] >= upper
        return high

    def has_risen(self, rows: Ints) -> Bools:
        """Return a mask of the links whose round trips have become longer at once, at most `_REFERENCE` of them ago."""
        columns = self.columns
        lately = self.latency_ms.counts[rows] - columns.changed_at[rows] < _REFERENCE
        risen: Bools = lately & (columns.level[rows] > columns.before_high[rows])
        return risen

    def forget_before_changes(self) -> None:
        """Forget the round trips of before a change of their link (see `changes`)."""
        rows = np.arange(len(self.index))
        rows = rows[self.latency_ms.counts[rows] > self.columns.forecast_at[rows]]
        if not len(rows):
            return
        window = self.latency_ms.latest(rows, self.latency_ms.length)
        since, low, high = find_changes(window)
        for keep in set(since[since > 0].tolist()):
            found = since == keep
            self._change(rows[found], keep, low[found], high[found])
        columns = self.columns
        returned, low, high = find_returns(window, columns.before_low[rows], columns.before_high[rows])
        returned &= since == 0
        self._change(rows[returned], RETURN, low[returned], high[returned])

    def _change(self, rows: Ints, keep: int, low: Floats, high: Floats) -> None:
        """Note that these links have changed with the latest `keep` round trips; `low` to `high` was usual before."""
        self.version += len(rows)
        self.latency_ms.forget(rows, keep)
        columns = self.columns
        columns.before_low[rows], columns.before_high[rows] = low, high
        columns.changed_at[rows] = self.latency_ms.counts[rows]
        columns.level[rows] = np.nan

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

    def _round_trips(self, rows: Ints) -> Ints:
        """Return the number of round trips of each link so far, loaded ones included."""
        total: Ints = self.latency_ms.counts[rows] + self.loaded_ms.counts[rows]
        return total


def _part(total: int, step: int, steps: int) -> int:
    """Return the size of part `step` of a total in `steps` parts of nearly equal size."""
    return total * (step + 1) // steps - total * step // steps
