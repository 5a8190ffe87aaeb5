"""Files of a run as the engine writes them. Failures are reported and retried, and never stop the training.

The event loop never waits for the disk. Lines wait in memory, in order and bounded, and one thread writes them.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from hypergpu.common.errors import StorageError
from hypergpu.coordinator.health import Health, Part
from hypergpu.coordinator.run_dir import RunDir

log = structlog.get_logger()

Row = Mapping[str, Any]
Kept = TypeVar("Kept")
PATIENCE_SECONDS = 5.0
"""Time after which a disk that accepts no line counts as failing."""


class Records:
    """Writer of run events and results. Training never depends on it: no method raises."""

    def __init__(self, run_dir: RunDir, health: Health) -> None:
        self._run_dir = run_dir
        self._health = health
        self._writer = ThreadPoolExecutor(1, "records")
        self._writing: asyncio.Future[None] | None = None
        self._syncing = False
        self._replacing = asyncio.Lock()
        self._dropped = 0

    @property
    def missing(self) -> str:
        """Description of what is missing from the files; empty if they are complete."""
        lines = self._run_dir.pending_lines + self._run_dir.dropped_lines
        missing = [f"{lines} lines of rounds.jsonl, events.jsonl and the ledger"] if lines else []
        missing += ["nodes.json or summary.json"] if self._health.is_failing(Part.RESULTS) else []
        return " and ".join(missing)

    def round(self, line: str) -> None:
        """Append the record of a round."""
        self._keep(self._run_dir.round, line)

    def event(self, row: Row) -> None:
        """Append a run event."""
        self._keep(self._run_dir.event, row)

    def leaves(self, lines: Sequence[str]) -> None:
        """Append sealed leaves of the ledger."""
        for line in lines:
            self._keep(self._run_dir.leaf, line)

    def ledger_checkpoint(self, row: Row) -> None:
        """Append a published checkpoint of the ledger."""
        self._keep(self._run_dir.ledger_checkpoint, row)

    @property
    def saved_leaves(self) -> int:
        """Number of leaves of the ledger that are known to be on the disk."""
        return self._run_dir.saved_leaves

    def sync_lines(self) -> bool:
        """Write and sync the lines so far, on a thread; return whether all of them are on the disk."""
        try:
            self._run_dir.flush()
            self._run_dir.sync()
        except Exception:  # the writer of lines reports it
            return False
        return self._run_dir.dropped_lines == 0

    def flush_before(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Return `write`, for a thread, with the lines so far written first: no file may be ahead of the records."""

        def flushed(*arguments: Any) -> Any:
            with suppress(StorageError):  # the writer reports it
                self._run_dir.flush()
            return write(*arguments)

        return flushed

    async def flush(self) -> None:
        """Wait until the lines so far are written or have failed."""
        self._write()
        while self._writing is not None:
            await asyncio.wait((self._writing,))

    async def retry(self) -> None:
        """Retry lines whose write failed, and report a disk that does not respond."""
        self._write()
        if self._writing is None:
            return
        _, hanging = await asyncio.wait((self._writing,), timeout=PATIENCE_SECONDS)
        if hanging:
            waiting = f"{self._run_dir.pending_lines} lines wait in memory"
            reason = f"the disk has not taken a line of {self._run_dir.path} for {PATIENCE_SECONDS:g} s; {waiting}"
            self._health.report(Part.RECORDS, reason)

    async def results(self, nodes: Sequence[Row], summary: Row) -> None:
        """Replace nodes.json and summary.json, on a thread."""

        def write() -> None:
            self._run_dir.nodes(nodes)
            self._run_dir.summary(summary)

        async with self._replacing:  # each writes to the same partial file
            await self._try_on_thread(Part.RESULTS, self.flush_before(write))

    async def sync(self) -> None:
        """Sync the lines to the disk on a thread; a call during a sync does nothing."""
        if self._syncing:
            return
        self._syncing = True
        try:
            await self._try_on_thread(Part.SYNC, self.flush_before(self._run_dir.sync))
        finally:
            self._syncing = False

    async def close(self) -> None:
        """Write and sync everything, as far as the disk allows."""
        await self.sync()
        await self.flush()  # includes failures that `sync` reported
        self._writer.shutdown(wait=False)

    async def _try_on_thread(self, part: Part, write: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, write)
        except Exception as error:
            self._failed(part, error)
        else:
            self._health.report(part, "")

    def _keep(self, keep: Callable[[Kept], None], row: Kept) -> None:
        try:
            keep(row)
        except Exception as error:  # a row that is not JSON
            self._failed(Part.RECORDS, error)
            return
        self._write()
        dropped, self._dropped = self._dropped, self._run_dir.dropped_lines
        if self._dropped > dropped:
            reason = f"too many lines wait to be written; {self._dropped} of the oldest were dropped"
            log.error(reason, out=str(self._run_dir.path))
            self._health.report(Part.RECORDS, reason)

    def _write(self) -> None:
        """Let the thread write the pending lines, unless it already does."""
        if self._writing is None and self._run_dir.pending_lines:
            self._writing = asyncio.get_running_loop().run_in_executor(self._writer, self._run_dir.flush)
            self._writing.add_done_callback(self._written)

    def _written(self, writing: "asyncio.Future[None]") -> None:
        self._writing = None
        if writing.cancelled():
            return
        error = writing.exception()
        if error is None:
            self._health.report(Part.RECORDS, "")
            self._write()  # a line that arrived just when the thread was done
        else:
            self._failed(Part.RECORDS, error)

    def _failed(self, part: Part, error: BaseException) -> None:
        if not isinstance(error, StorageError):
            log.exception("a record cannot be written", part=part, exc_info=error)
        self._health.report(part, str(error) or type(error).__name__)
