"""Durability of rounds: a closed round is in the log before anybody is told of it, and checkpoints shorten the log.

All disk work runs on two threads of its own: one for the log, in order, and one for checkpoints. The mean of a round is
written while the model is evaluated, so that a round waits for little more than one sync.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
import structlog

from hypergpu.common.errors import NonFiniteUpdate, StorageError
from hypergpu.common.tensors import Flat
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.engine_dependencies import EngineDependencies
from hypergpu.coordinator.failpoints import Point
from hypergpu.coordinator.health import Part
from hypergpu.coordinator.model_files import Snapshot
from hypergpu.coordinator.records import Records
from hypergpu.coordinator.round_log import RoundLog, checksum_of

log = structlog.get_logger()

OnCompute = Callable[..., Awaitable[Any]]
"""Runs a function with its arguments on the compute thread, in order."""
ATTEMPTS: Final = 3
"""Attempts to write a round to the log, each in another file, before it is told although it is not on the disk."""
KEPT_LOGS: Final = 2
"""Checkpoints whose rounds stay in the log: with the newest one damaged, the one before and the log lose nothing."""


def closing_record(
    closed: ev.CloseRound,
    effects: Sequence[ev.Effect],
    values: Flat,
    *,
    has_mean: bool,
    state: Mapping[str, Any],
    row: Mapping[str, Any],
    score: Score | None,
    evaluated: bool,
) -> dict[str, Any]:
    """Return the record of a closed round: what a later process needs to go on after it.

    Args:
        closed: The round.
        effects: Effects of its evaluation.
        values: Parameters after the step.
        has_mean: The step had a mean, which is in the log.
        state: State of the run, as in a checkpoint.
        row: Line of rounds.jsonl.
        score: Evaluation of the model after the step; None if it was not evaluated.
        evaluated: The figures in the state are those of the model that training goes on with.
    """
    reverted = any(isinstance(each, ev.RevertModel) for each in effects)
    kept = any(isinstance(each, ev.KeepModel) for each in effects)
    return {
        "round": closed.round,
        "step": list(closed.step) if has_mean else None,
        "values": checksum_of(values),
        "then": "revert" if reverted else "keep" if kept else "",
        "score": None if score is None else {"loss": score.loss, "metric": score.metric},
        "evaluated": evaluated,
        "state": state,
        "row": row,
    }


class Durability:
    """Writer of the log and of checkpoints. No failure of the disk ends the run: it is reported, and made up for.

    Args:
        dependencies: Log, checkpoints, the disk, and the rule by which checkpoints are due.
        model: Global model, whose means go to the log.
        records: Lines of rounds: the log is shortened only when they are on the disk.
        compute: Runs functions on the compute thread.
        record: Records an event of a round: its number, kind and text.
        on_disk: Called with a state of the run that is on the disk.
    """

    def __init__(
        self,
        dependencies: EngineDependencies,
        model: GlobalModel,
        records: Records,
        *,
        compute: OnCompute,
        record: Callable[[int, str, str], None],
        on_disk: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self._dependencies, self._files, self._log = dependencies, dependencies.files, dependencies.round_log
        self._rule, self._health = dependencies.checkpoints, dependencies.health
        self._compute, self._records, self._record, self._on_disk = compute, records, record, on_disk
        self._writers = _Writers(self._log)
        self.closed: Mapping[str, Any] = {}
        """Shards and counts of nodes when the last round closed: what later updates change is not saved with it."""
        self.unsaved: Sequence[str] = ()
        """Parts of the run's result that are not on the disk."""
        model.watch_means(None if self._log is None else self._writers.keep_mean)

    async def begin_step(self, number: int) -> None:
        """Take the next mean as that of a round, unless the log has a gap.

        It waits for a checkpoint that is being written if one of this very round is asked for, or if the log goes on
        after it.
        """
        if self._writers.writing and (self._writers.unlogged or self._rule.is_asked(number)):
            async with self._writers.lock:
                pass
        self._writers.round = 0 if self._writers.unlogged else number

    def write_mean(self) -> None:
        """Begin to write the mean of the step that was taken, while the model is evaluated."""
        self._writers.write_mean()

    async def commit(
        self, closed: ev.CloseRound, state: Mapping[str, Any], record: Callable[[bool], Mapping[str, Any]]
    ) -> None:
        """Write a closed round to the log, and return when it is on the disk or cannot be written.

        `record` is called on the thread of the log, with whether the log has the mean of the round; it has `state`.
        """
        if self._log is None:
            return
        if self._writers.unlogged:
            self._writers.unlogged = closed.round
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._writers.close_round(closed.round, record)
                self._dependencies.storage.reach(Point.TELL)
            except Exception as error:
                self._log.begin_file()
                if attempt == ATTEMPTS:
                    self._writers.unlogged = closed.round
                    self._rule.failed()
                    reason = f"cannot write the log of rounds: {_reason(error)}"
                    self._health.report(Part.LOG, f"{reason}; a restart repeats the rounds from {closed.round} on")
            else:
                self._on_disk(state)
                return

    def told(self) -> None:
        """Note that a round was told to everybody."""
        self._dependencies.storage.reach(Point.TOLD)

    def checkpoint_if_due(
        self, number: int, state: Mapping[str, Any], score: Score | None
    ) -> Coroutine[Any, Any, None] | None:
        """Return what writes a checkpoint of the present model, after a round; None if none is due, or one is written.

        The copy of the model is queued when this returns: what is queued after it on the compute thread is not in it.
        """
        log_bytes = self._log.nbytes if self._log is not None else 0
        if self._writers.writing or not self._rule.is_due(number, self._dependencies.clock(), log_bytes):
            return None
        self._writers.writing = True
        snapshot = self._compute(self._files.snapshot, number, state, score)

        async def write() -> None:
            async with self._writers.lock:
                await self._checkpoint(number, state, snapshot)

        return write()

    async def checkpoint(self, number: int, state: Mapping[str, Any], score: Score | None) -> bool:
        """Write a checkpoint, after one that is being written; return whether --resume will find it."""
        async with self._writers.lock:
            return await self._checkpoint(number, state, self._compute(self._files.snapshot, number, state, score))

    async def _checkpoint(self, number: int, state: Mapping[str, Any], snapshot: Awaitable[Snapshot]) -> bool:
        began_at = self._dependencies.clock()
        try:
            saved = await self._try(Part.CHECKPOINT, "the checkpoint", number, self._write, snapshot)
            has_lines = saved and await self._writers.on_checkpoints(self._records.sync_lines)
        finally:
            self._writers.writing = False
        if not saved:
            self._rule.failed()
            return False
        self._rule.written(began_at, self._dependencies.clock())
        self._on_disk(state)
        if self._writers.unlogged <= number:
            self._writers.unlogged = 0
            self._health.report(Part.LOG, "")
        if has_lines:
            await self._shorten_log()
        return True

    async def finish(self, number: int, state: Mapping[str, Any], score: Score | None) -> None:
        """Write the last checkpoint, and the present model as the result; `unsaved` tells what could not be written."""

        async def write() -> None:
            await self._compute(self._files.finish, number, score)

        unsaved = []
        if number >= 1 and not await self.checkpoint(number, state, score):
            unsaved.append("its last checkpoint could not be written")
        if not await self._try(Part.MODEL, "the model", number, write):
            unsaved.append("its model could not be written")
        self.unsaved = unsaved

    async def close(self) -> None:
        """Wait for what is being written."""
        await self._writers.close()

    async def _write(self, snapshot: Awaitable[Snapshot]) -> None:
        await self._writers.on_checkpoints(self._files.write, await snapshot)

    async def _shorten_log(self) -> None:
        """Let the log go on in a new file, and remove what the checkpoints that are kept have replaced."""
        if self._log is None:
            return
        try:
            rounds = self._files.newest
            await self._writers.on_log(self._log.begin_file)
            if len(rounds) >= KEPT_LOGS:
                await self._writers.on_log(self._log.trim, rounds[KEPT_LOGS - 1])
        except OSError as error:  # the next checkpoint tries again
            log.warning("an old file of the log cannot be removed", reason=_reason(error))

    async def _try(
        self, part: Part, what: str, number: int, write: Callable[..., Awaitable[None]], *arguments: Any
    ) -> bool:
        try:
            await write(*arguments)
        except Exception as error:
            if not isinstance(error, StorageError | NonFiniteUpdate):
                log.exception("a model cannot be saved", round=number)
            reason = _reason(error)
            self._record(number, "checkpoint_failed", f"{what} of round {number} was not written: {reason}")
            self._health.report(part, reason)
            return False
        self._health.report(part, "")
        return True


class _Writers:
    """Threads that write, and the mean on its way to the log."""

    def __init__(self, round_log: RoundLog | None) -> None:
        self.lock = asyncio.Lock()
        """Held while a checkpoint is written."""
        self.writing = False
        self.round = 0
        """Round of the next mean; 0 = it is not written."""
        self.unlogged = 0
        """Latest round that is not in the log; the log goes on after a checkpoint of it."""
        self._log = round_log
        self._log_thread = ThreadPoolExecutor(1, "log")
        self._checkpoint_thread = ThreadPoolExecutor(1, "checkpoints")
        self._buffer: Flat = np.empty(0, np.float32)
        self._mean: Flat | None = None
        """Mean of the round, in the buffer, until it is written."""
        self._written: Flat | None = None
        """Mean of the round, once it is being written."""
        self._step: asyncio.Future[Any] | None = None

    def keep_mean(self, mean: Flat) -> None:
        """Copy the mean of a round; called on the compute thread."""
        if not self.round:
            return
        if len(self._buffer) < len(mean):
            self._buffer = np.empty_like(mean)
        self._mean = self._buffer[: len(mean)]
        np.copyto(self._mean, mean)

    def write_mean(self) -> None:
        """Begin to write the mean that was copied, if there is one."""
        mean, self._mean, self._step = self._mean, None, None
        self._written = mean
        if mean is not None and self._log is not None:
            self._step = self.on_log(self._log.step, self.round, mean)

    async def close_round(self, number: int, record: Callable[[bool], Mapping[str, Any]]) -> None:
        """Write the record of a round after its mean, and sync both."""
        assert self._log is not None
        step, self._step = self._step, None
        mean, log = self._written, self._log
        if step is not None:
            await step
        elif mean is not None:  # another attempt, in another file
            await self.on_log(log.step, number, mean)
        await self.on_log(lambda: log.close_round(number, record(mean is not None)))

    def on_log(self, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        """Run a function on the thread of the log."""
        return asyncio.get_running_loop().run_in_executor(self._log_thread, partial(function, *arguments))

    def on_checkpoints(self, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        """Run a function on the thread of checkpoints."""
        return asyncio.get_running_loop().run_in_executor(self._checkpoint_thread, partial(function, *arguments))

    async def close(self) -> None:
        """Wait for both threads."""
        async with self.lock:
            if self._log is not None:
                await self.on_log(self._log.close)
        self._log_thread.shutdown(wait=False)
        self._checkpoint_thread.shutdown(wait=False)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
