"""What does not work at the moment: for probes, the status and the metrics. Nothing here stops a run."""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from hypergpu.common.clock import Clock, monotonic

_BEAT_SECONDS: Final = 1.0
STALLED_SECONDS: Final = 30.0
"""Time without a turn of the event loop after which the coordinator counts as dead: no call is answered meanwhile."""
_MAX_REASON: Final = 300


class Part(StrEnum):
    """What may fail while the run goes on."""

    RECORDS = "records"
    """rounds.jsonl and events.jsonl."""
    RESULTS = "results"
    """nodes.json and summary.json."""
    SYNC = "sync"
    """Records that are written and may not be on the disk."""
    CHECKPOINT = "checkpoint"
    MODEL = "model"
    """The model at the end of the run."""
    SPILL = "upload_spill"
    """Uploads for which there is no memory."""
    SCRAPER = "scraper"
    NODE_SERIES = "node_series"
    RETRY = "retry"
    """The job that writes later what could not be written."""


Tell = Callable[[str], None]
"""Called with why a part does not work, or with an empty text when it works."""


class Health:
    """The parts that do not work, and whether the event loop runs. Changed on the event loop; read from any thread."""

    def __init__(self, registry: CollectorRegistry, clock: Clock = monotonic) -> None:
        self.on_change: Callable[[Part, str], None] = lambda part, reason: None
        """Told when a part stops working, with the reason, and when it works again, with none."""
        self._clock = clock
        self._beat_at: float | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._reasons: dict[Part, str] = {}
        self._gauge = Gauge(
            "hypergpu_degraded", "1 while a part of the coordinator does not work.", ["part"], registry=registry
        )
        self._failures = Counter(
            "hypergpu_part_failures", "Failures of a part that the run survived.", ["part"], registry=registry
        )
        for part in Part:
            self._gauge.labels(part).set(0)
            self._failures.labels(part)

    @property
    def problems(self) -> list[str]:
        """The parts that do not work, with the reason of each."""
        return [f"{part}: {reason}" for part, reason in list(self._reasons.items())]

    def is_failing(self, part: Part) -> bool:
        """Return whether a part did not work when it was last tried."""
        return part in self._reasons

    @property
    def stalled_seconds(self) -> float:
        """Time since the event loop ran, if that is too long; else 0."""
        silent = 0.0 if self._beat_at is None else self._clock() - self._beat_at
        return silent if silent > STALLED_SECONDS else 0.0

    def teller(self, part: Part) -> Tell:
        """Return what a part calls to say whether it works."""
        return lambda reason: self.tell(part, reason)

    def tell(self, part: Part, reason: str) -> None:
        """Note that a part works (no reason), or why it does not."""
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

    def beat(self) -> None:
        """Begin to note that the event loop runs."""
        self._beat_at = self._clock()
        self._beating = asyncio.get_running_loop().call_later(_BEAT_SECONDS, self.beat)

    def rest(self) -> None:
        """End what `beat` began."""
        self._beat_at = None
        if self._beating is not None:
            self._beating.cancel()
