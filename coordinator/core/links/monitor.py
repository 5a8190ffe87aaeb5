"""Network monitor: measures, scores and classifies every link."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.config import MonitorConfig
from hypergpu.common.errors import InvalidInput
from hypergpu.common.statistics import FULL_TREND, mann_kendall_rows
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.checks import require_non_negative, require_positive
from hypergpu.coordinator.core.links import quality as q
from hypergpu.coordinator.core.links.alerts import Alert, AlertKind, AlertLog, Condition, Severity
from hypergpu.coordinator.core.links.history import MOST_CHANGE, LinkHistory
from hypergpu.coordinator.core.links.profile import MBIT, ROUND_TRIP_QUANTILES, LinkProfile
from hypergpu.coordinator.core.links.quality import ConnectionQuality, Scores
from hypergpu.coordinator.core.links.rates import LinkRate, RateEstimator
from hypergpu.coordinator.core.links.transfer_time import DirectionRates, TransferRates
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints

MOST_GROWTH = 2.0
"""Largest factor, and its reciprocal the smallest, by which a forecast may differ from what is measured."""
_SURE = 2.58
"""Mann–Kendall statistic of a trend at the 1 % significance level."""
_IMPROVED = 2.0 / 3.0
"""Ratio of a link's round trips, now and before, for which it has improved."""
_SURER = 3.29
"""The same at the 0.1 % level, for what is asked with every communication."""
_SAME_MOMENT_SECONDS = 0.01
"""Time for which a judgement is reused: silence does not change a score noticeably within it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Scores and class numbers at one moment, one entry per link."""

    scores: Scores
    classes: Ints

    def of(self, rows: Ints) -> "Judgement":
        """Return copies of the entries of these links."""
        scores = self.scores
        part = Scores(scores.latency[rows], scores.loss[rows], scores.reliability[rows], scores.freshness[rows])
        return Judgement(part, self.classes[rows])


class NetworkQualityMonitor:
    """Monitor that scores and classifies links from recorded communications.

    It has three sources: RPCs that the coordinator sees (`record_communication`, `record_round_communication`), metrics
    scraped from the nodes, and reports in their heartbeats (both through `observe_counters`). Queries use everything
    recorded so far and change nothing.

    `refresh` advances forecasts, classes and alerts; a background thread calls it every `update_interval_seconds`.
    `update` does the same and returns the changed classes; the orchestrator calls it before each round.

    Args:
        update_interval_seconds: Interval of the background refresh; None takes it from `config`.
        config: Thresholds and history lengths; None for the defaults.
        clock: Source of the time in seconds.
        model_bytes: Payload of the parameters, and of an update; None if unknown, which leaves transfers without a
            predicted time.

    Raises:
        InvalidInput: The interval is not positive and finite.
    """

    def __init__(
        self,
        update_interval_seconds: float | None = None,
        *,
        config: MonitorConfig | None = None,
        clock: Clock = monotonic,
        model_bytes: int | None = None,
    ) -> None:
        self._model_bytes = model_bytes
        self.config = config or MonitorConfig()
        self.update_interval_seconds = (
            self.config.update_interval_seconds
            if update_interval_seconds is None
            else require_positive(update_interval_seconds, "update_interval_seconds")
        )
        self._clock = clock
        self._links = LinkHistory(self.config)
        self._alerts = AlertLog()
        nothing = np.zeros(0)
        self._judged = (-1, 0.0, Judgement(Scores(nothing, nothing, nothing, nothing), nothing.astype(np.int64)))
        self._counters: dict[tuple[str, str], tuple[int, int, float]] = {}
        """Attempts, failures and the time of their last report, by node and source."""

    # ------------------------------------------------------------ feeding

    def register_node(self, node_id: str) -> None:
        """Register a node. A repeated registration has no effect."""
        if self._links.add(node_id, self._clock()) and self._model_bytes is not None:
            row, columns = self._links.index.row(node_id), self._links.columns
            columns.up_bytes[row] = columns.down_bytes[row] = self._model_bytes

    def record_communication(self, node_id: str, latency_ms: float, success: bool, *, loaded: bool = False) -> None:
        """Record one finished RPC of a node.

        Args:
            node_id: A registered node.
            latency_ms: Round trip in milliseconds. After a failure it is ignored, but still checked.
            success: Whether the RPC succeeded. A failure counts as a lost communication.
            loaded: Whether a transfer of the run was in its way; see `record_round_trip`.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: The latency is negative or not finite.
        """
        row = self._links.index.row(node_id)
        require_non_negative(latency_ms, "latency_ms")
        self._links.communication(row, bool(success), self._clock())
        if success:
            self._links.round_trip(row, float(latency_ms), loaded)

    def record_round_trip(self, node_id: str, latency_ms: float, *, loaded: bool = False) -> None:
        """Record a round trip of a communication that is counted elsewhere.

        Args:
            node_id: A registered node.
            latency_ms: Round trip in milliseconds.
            loaded: Whether a transfer of the run was in its way. Such a round trip shows how full the run itself keeps
                the link: it counts for neither latency, score, class, trend nor alerts.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: The latency is negative or not finite.
        """
        row = self._links.index.row(node_id)
        self._links.round_trip(row, require_non_negative(latency_ms, "latency_ms"), loaded)

    def record_contact(self, node_id: str) -> None:
        """Record that something of a node arrived which is no communication of its own, such as a part of an upload.

        Raises:
            UnknownName: The node is not registered.
        """
        self._links.contact(self._links.index.row(node_id), self._clock())

    def record_upload(self, node_id: str, transfer: Transfer) -> None:
        """Record a transfer from a node, as the coordinator received it.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: It has no bytes, or its time is negative or not finite.
        """
        self._transferred(self._links.uploads[self._links.index.row(node_id)], transfer)

    def record_download(self, node_id: str, transfer: Transfer) -> None:
        """Record a transfer to a node, as the node received it.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: It has no bytes, or its time is negative or not finite.
        """
        self._transferred(self._links.downloads[self._links.index.row(node_id)], transfer)

    def _transferred(self, estimator: RateEstimator, transfer: Transfer) -> None:
        if not transfer.is_possible:
            raise InvalidInput(f"a transfer has bytes, and finite times and bytes before it >= 0, not {transfer}")
        estimator.record(transfer, self._clock())

    def record_round_communication(self, node_id: str, seconds: float) -> None:
        """Record the round communication of a node.

        Args:
            node_id: A registered node.
            seconds: Time that all communication of one round took, with retries, or after which it was abandoned.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: The time is negative or not finite.
        """
        row = self._links.index.row(node_id)
        seconds = require_non_negative(seconds, "seconds")
        self._links.round_communications(np.array([row]), np.array([seconds]), self._clock())

    def record_rounds(self, rows: Ints, seconds: Floats, success: Bools, measured: Bools) -> None:
        """Record the round communication of several nodes; the rows must be distinct.

        A successful round counts as two communications of a node whose single RPCs are not reported. One that failed
        does not: why it did is not known here.

        Args:
            rows: Rows of the nodes (see `rows`).
            seconds: Round communication of each node.
            success: Whether the node's update arrived.
            measured: Whether `seconds` is a measurement of the link.
        """
        self._links.rounds(rows[self._links.unreported(rows) & success], self._clock())
        self._links.rounds_seen(rows)
        self._links.round_communications(rows[measured], seconds[measured], self._clock())

    def observe_counters(
        self, node_id: str, *, attempts: int, failures: int, latency_ms: float | None = None, source: str = "report"
    ) -> None:
        """Record the increase of counters that a node maintains, from a heartbeat or a scrape.

        A counter that decreased means that the node restarted, as in Prometheus's `rate`.

        Args:
            node_id: A registered node.
            attempts: Total number of RPCs.
            failures: Total number of failed RPCs.
            latency_ms: Round trip of one of the successful RPCs in milliseconds; None if unknown.
            source: Name of the source; the counters of each source are kept apart.

        Raises:
            UnknownName: The node is not registered.
            InvalidInput: A counter is negative, there are more failures than attempts, or the latency is negative or
                not finite.
        """
        row = self._links.index.row(node_id)
        if not 0 <= failures <= attempts:
            raise InvalidInput(f"{failures} failures of {attempts} attempts: expected 0 <= failures <= attempts")
        latency = None if latency_ms is None else require_non_negative(latency_ms, "latency_ms")
        key = node_id, source
        now = self._clock()
        seen, failed, since = self._counters.get(key, (0, 0, now))
        if attempts < seen or failures < failed:
            seen = failed = 0
        self._counters[key] = attempts, failures, now
        lost = failures - failed
        won = attempts - seen - lost
        most = self.config.history
        if self._links.counted(row, lost, won, now - since) and won > 0:
            self._links.outage(row)
            lost = 0
        if 0 < lost < won:
            self._links.mixed(row, min(lost, most), min(won, most), now)
        else:
            if lost > 0:
                self._links.communication(row, False, now, min(lost, most))
            if won > 0:  # negative after an unnoticed restart
                self._links.communication(row, True, now, min(won, most))
        if won > 0 and latency is not None:
            self._links.round_trip(row, latency, loaded=False)

    # ------------------------------------------------------------ queries

    def get_node_quality(self, node_id: str) -> ConnectionQuality:
        """Return the quality class of a node's link.

        Raises:
            UnknownName: The node is not registered.
        """
        rows = np.array([self._links.index.row(node_id)])
        return q.CLASSES[int(self._judge(rows).classes[0])]

    def knows(self, node_id: str) -> bool:
        """Return whether a node is registered."""
        return node_id in self._links.index

    def get_node_profile(self, node_id: str) -> LinkProfile:
        """Return all figures of a node's link.

        Raises:
            UnknownName: The node is not registered.
        """
        return self.get_node_profiles([node_id])[0]

    def get_node_profiles(self, node_ids: Sequence[str]) -> list[LinkProfile]:
        """Return the profiles of several nodes, in the given order.

        Raises:
            UnknownName: A node is not registered.
        """
        return self._profiles(self._links.index.rows(node_ids))

    def rates(self) -> dict[str, dict[str, float]]:
        """Return the figures of all profiles about rates, by node and name."""
        now = self._clock()
        return {
            node: {**_rate_figures("down", down, now), **_rate_figures("up", up, now)}
            for node, (up, down) in zip(self._links.index.ids, self._links.link_rates(self._every()), strict=True)
        }

    def qualities(self) -> dict[str, ConnectionQuality]:
        """Return the quality class of each link, by node."""
        classes = self._judge(self._every()).classes.tolist()
        return {node: q.CLASSES[number] for node, number in zip(self._links.index.ids, classes, strict=True)}

    def round_trips(self) -> dict[str, dict[str, float]]:
        """Return quantiles of each link's round trips in milliseconds, by node and name; NaN without a measurement."""
        found = self._links.latency_ms.quantiles(self._every(), list(ROUND_TRIP_QUANTILES.values()))
        return {
            node: dict(zip(ROUND_TRIP_QUANTILES, found[:, index].tolist(), strict=True))
            for index, node in enumerate(self._links.index.ids)
        }

    def round_trips_measured(self, rows: Ints, most: int) -> Ints:
        """Return the number of measured round trips of each link, up to `most`."""
        known: Ints = (~np.isnan(self._links.latency_ms.latest(rows, most))).sum(axis=1)
        return known

    def get_cluster_health_summary(self) -> dict[str, Any]:
        """Return a summary of all links.

        Returns:
            `total_nodes`, `quality` (nodes per class), `health_score` (mean score of the measured links, 0–100),
            `median_latency_ms` (both None without a measurement), `mean_loss_rate`, `open_alerts` (a count),
            `problematic_nodes` (poor, critical or offline) and `reliable_nodes` (excellent or good).
        """
        rows = self._every()
        judged = self._judge(rows)
        known = judged.classes != q.UNKNOWN
        medians = self._links.latency_ms.quantiles(rows, [0.5])[0]
        measured = medians[~np.isnan(medians)]
        return {
            "total_nodes": len(rows),
            "quality": self._counts(judged.classes),
            "health_score": float(judged.scores.total[known].mean()) if known.any() else None,
            "median_latency_ms": float(np.median(measured)) if len(measured) else None,
            "mean_loss_rate": float(self.loss_rates(rows).mean()) if len(rows) else 0.0,
            "open_alerts": len(self._alerts.alerts(Severity.LOW)),
            "problematic_nodes": self._named(_is_problematic(judged.classes)),
            "reliable_nodes": self._named(judged.classes <= q.GOOD),
        }

    def class_counts(self) -> dict[str, int]:
        """Return the number of links in each class."""
        return self._counts(self._judge(self._every()).classes)

    def get_problematic_nodes(self) -> list[str]:
        """Return the nodes whose link is poor, critical or offline, worst first."""
        judged = self._judge(self._every())
        return self._named(_is_problematic(judged.classes), np.argsort(judged.scores.total, kind="stable"))

    def get_reliable_nodes(self) -> list[str]:
        """Return the nodes whose link is excellent or good, best first."""
        judged = self._judge(self._every())
        return self._named(judged.classes <= q.GOOD, np.argsort(-judged.scores.total, kind="stable"))

    def get_alerts(self, severity: str | Severity | None = None, *, include_closed: bool = False) -> list[Alert]:
        """Return alerts, the most severe first, then the oldest.

        Args:
            severity: Lowest severity to include (low, medium or high); None includes all.
            include_closed: Whether to include closed alerts.

        Raises:
            UnknownName: There is no such severity.
        """
        least = Severity.LOW if severity is None else Severity.named(severity)
        return self._alerts_now(self._judge(self._every())).alerts(least, include_closed=include_closed)

    def refresh(self) -> None:
        """Advance forecasts, classes and alerts. Class changes are kept until `update` returns them."""
        self._links.forget_before_changes()
        self._links.advance_forecasts()
        judged = self._judge(self._every())
        self._links.columns.quality[: len(self._links.index)] = judged.classes
        self._alerts = self._alerts_now(judged)

    def update(self) -> dict[str, ConnectionQuality]:
        """Advance forecasts, classes and alerts.

        Returns:
            Links whose class changed since the last call, by node id. A link without a measurement is left out.
        """
        self.refresh()
        rows = self._every()
        classes, reported = self._links.columns.quality[rows], self._links.columns.reported
        changed = np.flatnonzero((reported[rows] != classes) & (classes != q.UNKNOWN))
        reported[changed] = classes[changed]
        return {self._links.index.ids[row]: q.CLASSES[classes[row]] for row in changed}

    # ------------------------------------------------------------ array queries

    def rows(self, node_ids: Sequence[str]) -> Ints:
        """Return the rows of nodes, for the methods below.

        Raises:
            UnknownName: A node is not registered.
        """
        return self._links.index.rows(node_ids)

    def scores(self, rows: Ints, horizon: float = 0.0) -> Floats:
        """Return scores (0–100), with the present latency or the one forecast `horizon` observations ahead."""
        scores = self._judge(rows).scores
        scale = self.forecast_scale(rows, horizon) if horizon else np.ones(len(rows))
        moving = scale != 1.0
        if not moving.any():
            return scores.total
        high = self._links.latency_ms.quantiles(rows[moving], [0.75])[0]
        scores.latency[moving] = q.latency_points(high * scale[moving], self.config)
        return scores.total

    def classes(self, rows: Ints) -> Ints:
        """Return class numbers: positions in `ConnectionQuality`, from 0 (excellent) to 5 (offline) and 6 (unknown)."""
        return self._judge(rows).classes

    def latencies_ms(self, rows: Ints, horizon: float = 0.0) -> Floats:
        """Return median round trips in milliseconds, or their forecast; NaN for a link without a measurement."""
        median: Floats = self._links.latency_ms.quantiles(rows, [0.5])[0]
        return median * self.forecast_scale(rows, horizon) if horizon else median

    def loaded_latencies_ms(self, rows: Ints) -> Floats:
        """Return the median round trip of each link beside transfers of the run; NaN if none was longer than usual."""
        median: Floats = self._links.loaded_ms.quantiles(rows, [0.5])[0]
        return median

    def loss_rates(self, rows: Ints) -> Floats:
        """Return the smoothed share of lost communications of each link."""
        return self._links.columns.lost[rows] / np.maximum(self._links.columns.weight[rows], 1e-9)

    def silences_seconds(self, rows: Ints) -> Floats:
        """Return the seconds since the last successful communication of each link."""
        silence: Floats = np.maximum(self._clock() - self._links.columns.last_seen[rows], 0.0)
        return silence

    def failures_in_a_row(self, rows: Ints) -> Ints:
        """Return the number of consecutive failures of each link up to now."""
        return self._links.columns.streak[rows]

    def forecast_scale(self, rows: Ints, horizon: float) -> Floats:
        """Return the growth of each round trip over `horizon` observations, as a factor; 1 if within the noise.

        The factor is between 1 / `MOST_GROWTH` and `MOST_GROWTH`.
        """
        columns = self._links.columns
        level, trend, noise = columns.level[rows], columns.trend[rows], columns.noise[rows]
        clear = (np.abs(trend) * max(horizon, 1.0) > noise) & (level > 0)
        scale = np.ones(len(rows))
        if clear.any():
            growth = 1.0 + horizon * trend[clear] / level[clear]
            steady = np.abs(self._trends(rows[clear])) > _SURE
            scale[clear] = np.where(steady, np.clip(growth, 1.0 / MOST_GROWTH, MOST_GROWTH), 1.0)
        return scale

    def has_improved(self, rows: Ints) -> Bools:
        """Return a mask of the links whose round trips are clearly shorter than before their last measured round."""
        improved: Bools = self._links.round_communication_scale(rows) < _IMPROVED
        return improved

    def restart_rounds(self, rows: Ints) -> None:
        """Forget the round communications of links that have recovered, but for the latest of each."""
        self._links.restart_round_communications(rows)

    def restart_rate(self, node_id: str, direction: Literal["down", "up"]) -> None:
        """Forget the transfers of a link in one direction, but for the latest.

        Raises:
            UnknownName: The node is not registered.
        """
        estimators = self._links.downloads if direction == "down" else self._links.uploads
        estimators[self._links.index.row(node_id)].restart()

    def rounds_measured(self, rows: Ints) -> Ints:
        """Return the number of round communications in each node's history."""
        return self._links.round_communication_seconds.filled(rows)

    def has_round_communication(self, rows: Ints) -> Bools:
        """Return a mask of the links of which the communication of a round was measured."""
        known: Bools = self._links.round_communication_seconds.filled(rows) > 0
        return known

    def round_communication_samples(self, rows: Ints, count: int, horizon: float = 0.0) -> Floats:
        """Return samples of each node's expected round communication in seconds: shape (rows, count).

        The samples are the latest measurements, scaled by the later change of the round trip and by its forecast, by
        `MOST_CHANGE` at most. A link without measurements gets two round trips at the 75 % quantile, with retries and
        the same forecast, or the median of the cluster if its round trip is unknown too; in any case at least the time
        of its transfers by its rates.
        """
        links = self._links
        samples = links.round_communication_samples(rows, count)
        missing = np.isnan(samples)
        held = count - missing.sum(axis=1)
        places = count - held[:, None] + np.arange(count)[None, :] % np.maximum(held, 1)[:, None]
        samples = np.where(missing, np.take_along_axis(samples, np.minimum(places, count - 1), axis=1), samples)
        scale = links.round_communication_scale(rows) * (self.forecast_scale(rows, horizon) if horizon else 1.0)
        samples *= np.clip(scale, 1.0 / MOST_CHANGE, MOST_CHANGE)[:, None]
        empty = held == 0
        if empty.any():
            high = links.latency_ms.quantiles(rows[empty], [0.75])[0]
            if horizon:
                high = high * self.forecast_scale(rows[empty], horizon)
            guess = 2e-3 * high / (1.0 - np.minimum(self.loss_rates(rows[empty]), 0.9))
            known = samples[~empty]
            usual = (
                float(np.median(known))
                if known.size
                else (float(np.nanmedian(guess)) if len(guess) and not np.isnan(guess).all() else 0.0)
            )
            guess = np.fmax(np.where(np.isnan(guess), usual, guess), self.transfer_seconds(rows[empty]))
            samples[empty] = guess[:, None]
        return samples

    def transfer_seconds(self, rows: Ints) -> Floats:
        """Return the time that the coming parameters and update take on each link.

        It is latency + bytes / rate per direction. A direction without a measured rate counts with its lower bound, and
        without that as the other one. NaN for a link of which neither is known.
        """
        seconds = np.full(len(rows), np.nan)
        if self._model_bytes is None:
            return seconds
        columns = self._links.columns
        median = self._links.latency_ms.quantiles(rows, [0.5])[0]
        for at, (up, down) in enumerate(self._links.link_rates(rows)):
            rates = [each.rate if each.rate > 0.0 else each.at_least for each in (up, down)]
            known = [each for each in rates if each > 0.0]
            if known:
                payloads = columns.up_bytes[rows[at]], columns.down_bytes[rows[at]]
                transfers = sum(
                    nbytes / (each if each > 0.0 else min(known)) for nbytes, each in zip(payloads, rates, strict=True)
                )
                seconds[at] = transfers + 1e-3 * np.nan_to_num(median[at])
        return seconds

    def upload_seconds(self, node_id: str) -> float:
        """Return the time that an update takes by the rate of the node's link, or by its lower bound; NaN if unknown.

        Raises:
            UnknownName: The node is not registered.
        """
        if self._model_bytes is None:
            return math.nan
        row = self._links.index.row(node_id)
        ((up, _),) = self._links.link_rates(np.array([row]))
        return self._links.columns.up_bytes.item(row) / (up.rate if up.rate > 0.0 else up.at_least)

    def transfer_rates(self, rows: Ints) -> TransferRates:
        """Return the rates of these links, for the prediction of transfers."""
        pairs = self._links.link_rates(rows)
        up, down = _direction_rates([up for up, _ in pairs]), _direction_rates([down for _, down in pairs])
        return TransferRates(up, down, 1e-3 * self.latencies_ms(rows))

    def expected_payloads(self, rows: Ints) -> tuple[Floats, Floats]:
        """Return the payloads up and down of each link that expectations are about, in bytes."""
        return self._links.columns.up_bytes[rows], self._links.columns.down_bytes[rows]

    def expect_payloads(self, rows: Ints, up_bytes: Floats, down_bytes: Floats) -> Floats:
        """Set the payloads of the coming round, and let all expectations follow from them.

        What was measured with other payloads is changed by the difference in the time of the transfers, as far as the
        rates of a link are known. It never becomes shorter than the transfers themselves.

        Args:
            rows: Links; they must be distinct.
            up_bytes: Payload of the update of each.
            down_bytes: Payload of the parameters of each.

        Returns:
            The change of the expected communication of each link in seconds.
        """
        columns, changes = self._links.columns, np.zeros(len(rows))
        moved = (columns.up_bytes[rows] != up_bytes) | (columns.down_bytes[rows] != down_bytes)
        if not moved.any():
            return changes
        rows, up_bytes, down_bytes = rows[moved], up_bytes[moved], down_bytes[moved]
        rates = self.transfer_rates(rows)
        before = rates.seconds(columns.up_bytes[rows], columns.down_bytes[rows])
        after = rates.seconds(up_bytes, down_bytes)
        columns.up_bytes[rows], columns.down_bytes[rows] = up_bytes, down_bytes
        self._links.shift_round_communications(rows, after - before, after)
        changes[moved] = after - before
        return changes

    # ------------------------------------------------------------ inside

    def _every(self) -> Ints:
        return np.arange(len(self._links.index))

    def _named(self, wanted: Bools, order: Ints | None = None) -> list[str]:
        ids = self._links.index.ids
        return [ids[row] for row in (self._every() if order is None else order) if wanted[row]]

    @staticmethod
    def _counts(classes: Ints) -> dict[str, int]:
        counts = np.bincount(classes, minlength=len(q.CLASSES)).tolist()
        return {str(quality): count for quality, count in zip(q.CLASSES, counts, strict=True)}

    def _judge(self, rows: Ints) -> Judgement:
        """Score and classify these links. A judgement of all links is cached and reused within the same moment."""
        version, at, judged = self._judged
        if version != self._links.version or not 0.0 <= self._clock() - at < _SAME_MOMENT_SECONDS:
            if 4 * len(rows) < len(self._links.index):
                return self._judgement(rows)
            judged = self._judgement(self._every())
            self._judged = self._links.version, self._clock(), judged
        return judged.of(rows)

    def _judgement(self, rows: Ints) -> Judgement:
        links, config = self._links, self.config
        silence, streak = self.silences_seconds(rows), self.failures_in_a_row(rows)
        high, loss = links.latency_ms.quantiles(rows, [0.75])[0], self.loss_rates(rows)
        scores = q.score(
            high,
            loss=loss,
            success_share=self._success_shares(rows),
            tested=links.outcomes.counts[rows] > 0,
            streak=streak,
            silence_seconds=silence,
            config=config,
        )
        offline = (silence >= config.offline_after_seconds) | (streak >= config.offline_after_failures)
        before = np.where(links.outcomes.counts[rows] < q.SETTLED, -1, links.columns.quality[rows])
        margin = np.maximum(config.hysteresis, 2.0 * q.score_noise(loss, config))
        classes = q.classify(scores.total, before, offline, margin)
        failing = (links.outcomes.counts[rows] > 0) & (streak > 0)
        return Judgement(scores, np.where(np.isnan(high) & ~failing & ~offline, q.UNKNOWN, classes))

    def _success_shares(self, rows: Ints) -> Floats:
        filled = self._links.outcomes.filled(rows)
        won = (self._links.outcomes.values[rows] == 1.0).sum(axis=1)
        return np.where(filled > 0, won / np.maximum(filled, 1), 1.0)

    def _trends(self, rows: Ints) -> Floats:
        return mann_kendall_rows(self._links.latency_ms.latest(rows, FULL_TREND))

    def _alerts_now(self, judged: Judgement) -> AlertLog:
        rows, total, classes = self._every(), judged.scores.total, judged.classes
        loss, counts = self.loss_rates(rows), self._links.outcomes.counts[rows]
        conditions: list[Condition] = []
        silence, streak = self.silences_seconds(rows), self.failures_in_a_row(rows)
        levels, trend = self._links.columns.level, self._links.columns.trend
        before_high = self._links.columns.before_high
        limit = np.full(len(rows), 0.5 * self.config.worst_loss)
        limit[self.rows(self._alerts.nodes_with(AlertKind.HIGH_LOSS))] *= 0.5  # hysteresis: an open alert closes later
        lossy = (loss > limit) & (counts >= q.SETTLED)
        steep = trend[rows] > 0.02 * levels[rows]
        steep[steep] = self._trends(rows[steep]) > _SURER
        steep[steep] = self._links.is_high(rows[steep])
        risen = self._links.has_risen(rows)
        troubled = (classes == q.CRITICAL) | (classes == q.OFFLINE) | lossy | steep | risen
        for row in np.flatnonzero(troubled):
            node_id, class_number = self._links.index.ids[row], classes[row]
            if class_number == q.OFFLINE:
                figures = {"silence_seconds": float(silence[row]), "failures_in_a_row": float(streak[row])}
                conditions.append(Condition(node_id, AlertKind.OFFLINE, Severity.HIGH, figures))
                continue
            if class_number == q.CRITICAL:
                figures = {"score": float(total[row])}
                conditions.append(Condition(node_id, AlertKind.CRITICAL_QUALITY, Severity.HIGH, figures))
            if lossy[row]:
                grave = loss[row] > self.config.worst_loss
                severity = Severity.HIGH if grave else Severity.MEDIUM
                conditions.append(Condition(node_id, AlertKind.HIGH_LOSS, severity, {"loss_rate": float(loss[row])}))
            if risen[row]:
                figures = {"latency_ms": float(levels[row]), "highest_ms_before": float(before_high[row])}
            elif steep[row]:
                figures = {"latency_ms": float(levels[row]), "rise_ms_per_update": float(trend[row])}
            if risen[row] or steep[row]:
                conditions.append(Condition(node_id, AlertKind.DEGRADING, Severity.MEDIUM, figures))
        return self._alerts.updated(conditions, self._clock())

    def _profiles(self, rows: Ints) -> list[LinkProfile]:
        links, judged = self._links, self._judge(rows)
        scores = judged.scores
        quartile, median, upper, p95 = links.latency_ms.quantiles(rows, [0.25, 0.5, 0.75, 0.95])
        loaded = links.loaded_ms.quantiles(rows, [0.5])[0]
        loss, shares, trends = self.loss_rates(rows), self._success_shares(rows), self._trends(rows)
        rounds = links.round_communication_seconds.quantiles(rows, [0.5])[0]
        forecast = median * self.forecast_scale(rows, 1.0)
        now = self._clock()
        rates = links.link_rates(rows)
        unknown = judged.classes == q.UNKNOWN
        total = np.where(unknown, np.nan, scores.total)
        points = np.stack([scores.latency, scores.loss, scores.reliability, scores.freshness])
        points[:, unknown] = np.nan
        return [
            LinkProfile(
                node_id=links.index.ids[row],
                quality=q.CLASSES[judged.classes[at]],
                score=float(total[at]),
                latency_score=float(points[0, at]),
                loss_score=float(points[1, at]),
                reliability_score=float(points[2, at]),
                freshness=float(points[3, at]),
                latency_ms=float(median[at]),
                latency_p95_ms=float(p95[at]),
                loaded_latency_ms=float(loaded[at]),
                jitter_ms=float(upper[at] - quartile[at]) / 2.0,
                loss_rate=float(loss[at]),
                reliability=float(shares[at]),
                trend=q.trend_of(float(trends[at])),
                forecast_ms=float(forecast[at]),
                round_seconds=float(rounds[at]),
                **_rate_figures("down", rates[at][1], now),
                **_rate_figures("up", rates[at][0], now),
                communications=int(links.outcomes.counts[row]),
                silence_seconds=max(0.0, now - float(links.columns.last_seen[row])),
            )
            for at, row in enumerate(rows)
        ]


def _rate_figures(direction: str, measured: LinkRate, now: float) -> dict[str, float]:
    """Return the figures of a profile about the rate in one direction."""
    return {
        f"{direction}_mbit": MBIT * measured.rate,
        f"{direction}_spread_mbit": MBIT * measured.spread,
        f"{direction}_least_mbit": MBIT * measured.at_least,
        f"{direction}_age_seconds": now - measured.measured_at,
    }


def _direction_rates(rates: Sequence[LinkRate]) -> DirectionRates:
    measured = np.array([each.rate > 0.0 for each in rates], np.bool_)
    first = np.array([each.is_provisional for each in rates], np.bool_)
    usable = np.array([each.rate if each.rate > 0.0 else each.at_least for each in rates], np.float64)
    return DirectionRates(usable, measured, first)


def _is_problematic(classes: Ints) -> Bools:
    """Return a mask of the classes poor, critical and offline."""
    poor: Bools = (classes >= q.POOR) & (classes <= q.OFFLINE)
    return poor
