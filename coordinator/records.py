"""The files of a run as the engine writes them: a failure is told and survived, and what failed is tried again."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from common.errors import StorageError
from coordinator.health import Health, Part
from coordinator.run_dir import RunDir

log = structlog.get_logger()

Row = Mapping[str, Any]


class Records:
    """Writes what happened and what came out. Training never depends on it: no method raises."""

    def __init__(self, run_dir: RunDir, health: Health) -> None:
        self._run_dir = run_dir
        self._health = health
        self._syncing = False
        self._replacing = asyncio.Lock()
        self._dropped = 0

    @property
    def missing(self) -> str:
        """What is not in the files, in words; empty when they are complete."""
        lines = self._run_dir.pending_lines + self._run_dir.dropped_lines
        missing = [f"{lines} lines of rounds.jsonl and events.jsonl"] if lines else []
        missing += ["nodes.json or summary.json"] if self._health.is_failing(Part.RESULTS) else []
        return " and ".join(missing)

    def round(self, row: Row) -> None:
        """Append a round."""
        self._try(Part.RECORDS, lambda: self._run_dir.round(row))

    def event(self, row: Row) -> None:
        """Append an event."""
        self._try(Part.RECORDS, lambda: self._run_dir.event(row))
        if self._run_dir.dropped_lines > self._dropped:
            self._dropped = self._run_dir.dropped_lines
            log.error("too many lines cannot be written; the oldest are given up", dropped=self._dropped)

    def retry(self) -> None:
        """Write the lines that could not be written before."""
        if self._run_dir.pending_lines:
            self._try(Part.RECORDS, self._run_dir.flush)

    async def results(self, nodes: Sequence[Row], summary: Row) -> None:
        """Replace nodes.json and summary.json, on a thread."""

        def write() -> None:
            self._run_dir.nodes(nodes)
            self._run_dir.summary(summary)

        async with self._replacing:  # each writes to the same partial file
            await self._try_on_thread(Part.RESULTS, write)

    async def sync(self) -> None:
        """Bring the lines to the disk, on a thread; one call at a time, others do nothing."""
        if self._syncing:
            return
        self._syncing = True
        try:
            await self._try_on_thread(Part.SYNC, self._run_dir.sync)
        finally:
            self._syncing = False

    async def _try_on_thread(self, part: Part, write: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, write)
        except Exception as error:
            self._failed(part, error)
        else:
            self._health.tell(part, "")

    def _try(self, part: Part, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self._failed(part, error)
        else:
            self._health.tell(part, "")

    def _failed(self, part: Part, error: Exception) -> None:
        if not isinstance(error, StorageError):
            log.exception("a record cannot be written", part=part, exc_info=error)
        self._health.tell(part, str(error) or type(error).__name__)
