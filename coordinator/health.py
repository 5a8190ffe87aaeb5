"""Health of the coordinator, for probes, the status and the metrics. A failing part does not stop the run."""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from hypergpu.common.clock import Clock, monotonic

_TICK_SECONDS: Final = 1.0
STALLED_SECONDS: Final = 30.0
"""Time without an iteration of the event loop after which the coordinator counts as stalled: it answers no calls."""
_MAX_REASON: Final = 300


class Part(StrEnum):
    """Part of the coordinator that may fail while the run continues."""

    RECORDS = "records"
    """Writing rounds.jsonl and events.jsonl."""
    RESULTS = "results"
    """Writing nodes.json and summary.json."""
    SYNC = "sync"
    """Flushing written records to the disk."""
    LOG = "round_log"
    """Writing closed rounds to the log, before anybody is told of them."""
    CHECKPOINT = "checkpoint"
    MODEL = "model"
    """Writing the final model."""
    SPILL = "upload_spill"
    """Keeping uploads on the disk when memory is full."""
    SCRAPER = "scraper"
    NODE_SERIES = "node_series"
    OUTLETS = "outlets"
    """Delivery of the run to TensorBoard and the like."""
    RETRY = "retry"
    """Background job that retries failed writes."""


ReportState = Callable[[str], None]
"""Callback for the state of a part: the reason of a failure, or an empty string if it works."""


class Health:
    """Failing parts and liveness of the event loop. Updated on the event loop; readable from any thread."""

    def __init__(self, registry: CollectorRegistry, clock: Clock = monotonic) -> None:
        self.on_change: Callable[[Part, str], None] = lambda part, reason: None
        """Callback for changes: called with the reason when a part fails, and with an empty reason when it recovers."""
        self._clock = clock
        self._ticked_at: float | None = None
        self._next_tick: asyncio.TimerHandle | None = None
        self._reasons: dict[Part, str] = {}
        self._gauge = Gauge(
            "hypergpu_degraded", "1 while a part of the coordinator fails.", ["part"], registry=registry
        )
        self._failures = Counter(
            "hypergpu_part_failures", "Failures of a part that the run survived.", ["part"], registry=registry
        )
        for part in Part:
            self._gauge.labels(part).set(0)
            self._failures.labels(part)

    @property
    def problems(self) -> list[str]:
        """Failing parts with their reasons."""
        return [f"{part}: {reason}" for part, reason in list(self._reasons.items())]

    def is_failing(self, part: Part) -> bool:
        """Return whether the last operation of a part failed."""
        return part in self._reasons

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the last iteration of the event loop if it has stalled, else 0."""
        silent = 0.0 if self._ticked_at is None else self._clock() - self._ticked_at
        return silent if silent > STALLED_SECONDS else 0.0

    def reporter(self, part: Part) -> ReportState:
        """Return the callback with which a part reports its state."""
        return lambda reason: self.report(part, reason)

    def report(self, part: Part, reason: str) -> None:
        """Record that a part works (empty reason) or fails."""
        before = self._reasons.get(part, "")
        if not reason:
            self._gauge.labels(part).set(0)
            self._reasons.pop(part, None)
        else:
            self._failures.labels(part).inc()
            self._gauge.labels(part).set(1)
            self._reasons[part] = reason[:_MAX_REASON]
        if bool(before) != bool(reason):
            self.on_change(part, reason[:_MAX_REASON])

    def start_monitoring(self) -> None:
        """Start to monitor the event loop."""
        self._ticked_at = self._clock()
        self._next_tick = asyncio.get_running_loop().call_later(_TICK_SECONDS, self.start_monitoring)

    def stop_monitoring(self) -> None:
        """Stop the monitoring of the event loop."""
        self._ticked_at = None
        if self._next_tick is not None:
            self._next_tick.cancel()
